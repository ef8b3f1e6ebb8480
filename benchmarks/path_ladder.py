"""What stands between the path and its aims: the same request at each rung of the path, in turn, processor time by part.

    python -m benchmarks.path_ladder --minutes 4      writes benchmarks/results/path_ladder.md

The rungs: Python in Envoy that always gives the same answer (the floor of this door: nothing is read, no model is asked),
inference alone, router and inference, and Triton, whose processor time the aims divide. All stand on core 0 the whole time, the
load on core 1; slices of a third of a second, so that a machine that changes its speed by the second does so for all of them.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from inference import grpc_service_pb2 as oip

from benchmarks.processor_time import ProcessorTime
from benchmarks.serving.asks import oip_grpc
from benchmarks.serving.loading import LOAD_CORE, Asks, Loader
from benchmarks.serving.models import MODELS, TABULAR
from benchmarks.serving.servers import OURS, TEST_CORE, Server, all_servers
from services.common.door_lifespan import NO_TASK
from services.common.edge.launcher import launch
from services.common.grpc_wire import CONTENT_TYPE, STATUS_OK, frame
from services.common.server import main as serve
from services.inference.app import HOT, SERVICE, Settings, build

RESULT = Path(__file__).parent / "results" / "path_ladder.md"
FLOOR, ALONE, WHOLE, TRITON = "always the same answer", "inference alone", "router + inference", "triton"
AIMS = {ALONE: {1: 0.9, 16: 0.95, 64: 1.4, 256: 1.5}, WHOLE: {1: 0.6, 16: 0.7, 64: 1.2, 256: 1.3}}
_AS_FLOOR = "--as-floor"
_TENSOR = oip.ModelInferResponse.InferOutputTensor(name="y", datatype="FP32", shape=[1, 1])
_ANSWER = oip.ModelInferResponse(
    model_name=TABULAR.name, model_version="1", outputs=[_TENSOR], raw_output_contents=[bytes(4)]
)
_EVENTS = (
    {"type": "http.response.start", "status": 200, "headers": [CONTENT_TYPE], "trailers": True},
    {"type": "http.response.body", "body": frame(_ANSWER.SerializeToString())},
    {"type": "http.response.trailers", "headers": [STATUS_OK]},
)


class _Floor:
    """The ASGI application that gives the same answer once a body is there; its lifespan is inference's own."""

    _asgi_single_callable = True

    def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> Any:
        if scope["type"] != "http":
            from services.inference.door import app  # noqa: PLC0415 - only inside Envoy

            return app(scope, receive, send)
        receive().add_done_callback(lambda _: [send(event) for event in _EVENTS])
        return NO_TASK


floor = _Floor()


def _floor_in_envoy(settings: Settings) -> int:
    return launch(SERVICE, settings, "benchmarks.path_ladder:floor", hot=HOT)


def main() -> None:
    """Ask every rung in turn and write the table."""
    arguments = _arguments()
    psutil.Process().cpu_affinity([LOAD_CORE])
    folder = Path(tempfile.mkdtemp(prefix="il-"))
    try:
        for place in (folder, folder / "floor"):
            place.mkdir(exist_ok=True)
            for model in MODELS:
                model.write(place)
        entries = {"inference": [__spec__.name, _AS_FLOOR]}
        with (
            all_servers(folder, [OURS[2], OURS[0], "triton"], str(TEST_CORE)) as (servers, missing),
            all_servers(folder / "floor", [OURS[2]], str(TEST_CORE), entries=entries) as (with_floor, _),
        ):
            print(*missing.values())
            names = {OURS[2]: ALONE, OURS[0]: WHOLE, "triton": TRITON}
            rungs = {FLOOR: with_floor[OURS[2]]} | {names[name]: server for name, server in servers.items()}
            text = _report(arguments, rungs, Loader(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    arguments.output.write_text(text, "utf-8")
    print(text)


def _report(arguments: argparse.Namespace, rungs: Mapping[str, Server], loader: Loader) -> str:
    asks = oip_grpc(TABULAR)
    same = replace(asks, check=lambda _, body: body == _EVENTS[1]["body"])
    rounds = max(4, int(arguments.minutes * 60 / len(arguments.in_flight) / len(rungs) / (arguments.slice_s + 0.2)))
    parts = [
        "# What stands between the path and its aims",
        "",
        f"`python -m benchmarks.path_ladder --minutes {arguments.minutes:g}`, {time.strftime('%Y-%m-%d', time.gmtime())}: 100 trees on",
        f"30 floats, one row a request; medians of {rounds - 1} slices of {arguments.slice_s} s, microseconds of processor time a request.",
        "",
    ]
    for in_flight in arguments.in_flight:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in rungs}
        for number in range(rounds):
            for name in (*rungs,) if number % 2 else (*reversed(rungs),):
                found[name].append(
                    _slice(loader, rungs[name], same if name == FLOOR else asks, in_flight, arguments.slice_s)
                )
        # The first slice of each warms it up.
        medians = {name: _medians(slices[1:]) for name, slices in found.items()}
        table = _table(in_flight, medians)
        print(table, flush=True)
        parts += [table, ""]
    return "\n".join(parts)


def _slice(loader: Loader, server: Server, asks: Asks, in_flight: int, seconds: float) -> dict[str, float]:
    roots = [process.pid for process in server.processes]
    before = ProcessorTime(roots)
    cell = loader.run(server.port, asks, in_flight, seconds)
    us, switches = ProcessorTime(roots).since(before, cell.ok_count)
    spent = Counter[str]()
    for role, value in us.items():
        spent[role.removeprefix("router: ")] += value
    return {
        **spent,
        "all": sum(us.values()),
        "switches of threads": sum(switches.values()),
        "requests/s": cell.per_second,
    }


def _medians(slices: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for one in slices for name in one)
    return {name: float(np.median([one.get(name, 0.0) for one in slices])) for name in names}


def _table(in_flight: int, medians: Mapping[str, dict[str, float]]) -> str:
    names = dict.fromkeys(name for figures in medians.values() for name in figures)
    last = ("all", "switches of threads", "requests/s")
    shown = [
        name for name in names if name not in last and any(figures.get(name, 0) >= 0.5 for figures in medians.values())
    ]
    lines = [f"| {in_flight} in flight | {' | '.join(medians)} |", f"|---|{'---|' * len(medians)}"]
    for name in (*shown, *last):
        form = "{:,.1f}" if name == last[1] else "{:,.0f}"
        cells = [form.format(figures[name]) if name in figures else "" for figures in medians.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if TRITON in medians:
        budget = {rung: medians[TRITON]["all"] / AIMS[rung][in_flight] for rung in AIMS if in_flight in AIMS[rung]}
        cells = [f"{budget[rung]:,.0f} (x{AIMS[rung][in_flight]})" if rung in budget else "" for rung in medians]
        lines.append(f"| what the aim allows | {' | '.join(cells)} |")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--in-flight", nargs="+", type=int, default=[1, 16, 64, 256])
    parser.add_argument("--slice-s", type=float, default=0.3)
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    if _AS_FLOOR in sys.argv:
        sys.argv.remove(_AS_FLOOR)
        serve(SERVICE, Settings, build, _floor_in_envoy)
    else:
        main()
