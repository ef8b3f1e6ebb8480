"""What a user of Triton's Python client does, unchanged: `triton_client.py grpc|http`, a job on stdin, answers on stdout.

Runs in `.venv-clients`, which knows nothing of this suite. The job is an object: `address`, `model`, `version`, `inputs`
(each `name`, `datatype`, `shape`, `data`), `output` (one of the model's outputs) and `extensions` (whether the server
offers Triton's model configuration and statistics).
"""

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

REQUEST_ID = "job-7"
USER = {"user_id": "u-42"}


class Job:
    """One server, one model, and the client for it."""

    def __init__(self, protocol: str, asked: dict[str, Any]) -> None:
        self.library = importlib.import_module(f"tritonclient.{protocol}")
        self.client = self.library.InferenceServerClient(asked["address"])
        self.is_http = protocol == "http"
        # The client for gRPC gives messages, the one for HTTP gives what the JSON says.
        self.plain = {} if self.is_http else {"as_json": True}
        self.model: str = asked["model"]
        self.version: str = asked["version"]
        self.specs: list[dict[str, Any]] = asked["inputs"]
        self.output: str = asked["output"]
        self.extensions: bool = asked["extensions"]

    def inputs(self, *, binary: bool = True) -> list[Any]:
        return [self._input(spec, binary=binary) for spec in self.specs]

    def _input(self, spec: dict[str, Any], *, binary: bool) -> Any:
        found = self.library.InferInput(spec["name"], spec["shape"], spec["datatype"])
        values = np.array(spec["data"], dtype=triton_to_np_dtype(spec["datatype"])).reshape(spec["shape"])
        found.set_data_from_numpy(values, **({"binary_data": binary} if self.is_http else {}))
        return found

    def wanted(self, name: str, *, binary: bool = True) -> list[Any]:
        return [self.library.InferRequestedOutput(name, **({"binary_data": binary} if self.is_http else {}))]

    def infer(self, inputs: list[Any], **options: Any) -> dict[str, Any]:
        options = {"model_name": self.model, "model_version": self.version, "parameters": USER, **options}
        answer = self.client.infer(inputs=inputs, request_id=REQUEST_ID, **options)
        head = answer.get_response(**self.plain)
        arrays = {output["name"]: answer.as_numpy(output["name"]) for output in head["outputs"]}
        return {
            "id": head["id"],
            "model_name": head["model_name"],
            "model_version": head["model_version"],
            "binary": [output["name"] for output in head["outputs"] if not output.get("data")],
            "outputs": {name: {"shape": a.shape, "data": a.ravel().tolist()} for name, a in arrays.items()},
        }


def look(job: Job) -> dict[str, Any]:
    """Everything that a client asks before it infers."""
    client, name = job.client, {"model_name": job.model, "model_version": job.version}
    found = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(**name),
        "server": client.get_server_metadata(**job.plain),
        "model": client.get_model_metadata(**name, **job.plain),
        "index": client.get_model_repository_index(**job.plain),
    }
    if job.extensions:
        found["config"] = client.get_model_config(**name, **job.plain)
        found["statistics"] = client.get_inference_statistics(**name, **job.plain)
    return found


def answers(job: Job) -> dict[str, Any]:
    """The same rows in every form that the client knows."""
    found = {
        "all_outputs": job.infer(job.inputs()),
        "one_output": job.infer(job.inputs(), outputs=job.wanted(job.output)),
    }
    if job.is_http:
        found["json_both_ways"] = job.infer(job.inputs(binary=False), outputs=job.wanted(job.output, binary=False))
        found["json_in"] = job.infer(job.inputs(binary=False), outputs=job.wanted(job.output))
        found["json_out"] = job.infer(job.inputs(), outputs=job.wanted(job.output, binary=False))
        halves = [*job.inputs(binary=False)[:1], *job.inputs()[1:]]
        found["one_input_of_each"] = job.infer(halves, outputs=job.wanted(job.output))
    return found


def mistakes(job: Job) -> dict[str, Any]:
    """Wrong requests that the client itself lets through."""
    stranger = job.library.InferInput("no-such-input", [1, 1], "FP32")
    stranger.set_data_from_numpy(np.zeros((1, 1), np.float32))
    spec = job.specs[-1]
    wrong_type = job.library.InferInput(spec["name"], spec["shape"], "FP64")
    wrong_type.set_data_from_numpy(np.zeros(spec["shape"], np.float64))
    tries: dict[str, Callable[[], Any]] = {
        "unknown_model": lambda: job.infer(job.inputs(), model_name="no-such-model"),
        "unknown_version": lambda: job.infer(job.inputs(), model_version="987654"),
        "unknown_input": lambda: job.infer([*job.inputs(), stranger]),
        "missing_input": lambda: job.infer(job.inputs()[:1]),
        "wrong_datatype": lambda: job.infer([*job.inputs()[:-1], wrong_type]),
        "unknown_output": lambda: job.infer(job.inputs(), outputs=job.wanted("no-such-output")),
        "ready_of_unknown_model": lambda: job.client.is_model_ready("no-such-model"),
        "metadata_of_unknown_model": lambda: job.client.get_model_metadata("no-such-model"),
        "load": lambda: job.client.load_model(job.model),
        "unload": lambda: job.client.unload_model(job.model),
    }
    return {name: _refusal(call) for name, call in tries.items()}


def _refusal(call: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"answered": call()}
    except InferenceServerException as error:
        return {"status": error.status(), "message": error.message()}


def main() -> None:
    """Read the job, do it, write what came back."""
    job = Job(sys.argv[1], json.load(sys.stdin))
    try:
        found = {"look": look(job), "answers": answers(job), "mistakes": mistakes(job)}
    finally:
        job.client.close()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
