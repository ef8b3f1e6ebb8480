"""MLPerf LoadGen's Server scenario over Triton's gRPC client, both unchanged: a job on stdin, LoadGen's verdict on stdout.

Runs in `.venv-clients`. The job is that of `triton_more.py`, where a tensor may stand in a `file` of NumPy's instead of as `data`,
and `qps`, `seconds`, `latency_ms` (the bound of the 99th percentile), `queries` (at least so many). LoadGen decides when each
query is sent; it says VALID or why not.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlperf_loadgen as loadgen
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import triton_to_np_dtype

CONNECTIONS = 4


class Sut:
    """The system under test, as LoadGen sees it: queries in, completions out."""

    def __init__(self, asked: dict[str, Any]) -> None:
        channel = [("grpc.use_local_subchannel_pool", 1)]
        self._clients = [triton.InferenceServerClient(asked["grpc"], channel_args=channel) for _ in range(CONNECTIONS)]
        self._name = {"model_name": asked["model"], "model_version": asked["version"]}
        tensors = [(spec, self._values(spec)) for spec in asked["inputs"]]
        self._samples = [
            [self._row(spec, values[row : row + 1]) for spec, values in tensors] for row in range(asked["rows"])
        ]
        self.failures: list[str] = []

    def issue(self, queries: list[loadgen.QuerySample]) -> None:
        for query in queries:
            client = self._clients[query.id % CONNECTIONS]
            client.async_infer(inputs=self._samples[query.index], callback=self._done(query.id), **self._name)

    def _done(self, number: int) -> Any:
        def done(result: Any = None, error: Any = None) -> None:
            if error is not None:
                self.failures.append(str(error))
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(number, 0, 0)])

        return done

    def flush(self) -> None:
        """Nothing is held back."""

    @staticmethod
    def _values(spec: dict[str, Any]) -> "np.ndarray[Any, Any]":
        values = np.load(spec["file"]) if "file" in spec else np.array(spec["data"])
        return values.astype(triton_to_np_dtype(spec["datatype"])).reshape(spec["shape"])

    @staticmethod
    def _row(spec: dict[str, Any], values: "np.ndarray[Any, Any]") -> Any:
        one = triton.InferInput(spec["name"], list(values.shape), spec["datatype"])
        one.set_data_from_numpy(values)
        return one


def run(asked: dict[str, Any], folder: Path) -> dict[str, Any]:
    asked["rows"] = asked["inputs"][0]["shape"][0]
    system = Sut(asked)
    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.Server
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.server_target_qps = asked["qps"]
    settings.server_target_latency_ns = int(asked["latency_ms"] * 1e6)
    settings.server_target_latency_percentile = 0.99
    settings.min_duration_ms = int(asked["seconds"] * 1e3)
    settings.min_query_count = asked["queries"]
    output = loadgen.LogOutputSettings()
    output.outdir = str(folder)
    logs = loadgen.LogSettings()
    logs.log_output = output
    sut = loadgen.ConstructSUT(system.issue, system.flush)
    library = loadgen.ConstructQSL(asked["rows"], asked["rows"], lambda _: None, lambda _: None)
    before_s = time.process_time()
    loadgen.StartTestWithLogSettings(sut, library, settings, logs, "")
    loadgen.DestroyQSL(library)
    loadgen.DestroySUT(sut)
    summary = (folder / "mlperf_log_summary.txt").read_text("utf-8")
    fields = dict(line.split(":", 1) for line in summary.splitlines() if ":" in line)
    return {
        "verdict": next(value.strip() for name, value in fields.items() if name.startswith("Result is")),
        "processor_s": time.process_time() - before_s,
        "failures": system.failures[:5],
        "failure_count": len(system.failures),
        "summary": summary,
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="il-") as name:
        json.dump(run(json.load(sys.stdin), Path(name)), sys.stdout)
