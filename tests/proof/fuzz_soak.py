"""The long form of the fuzz: `make soak`, or `python -m tests.proof.fuzz_soak --runs 1000000 --over-the-wire 2000`.

Each target of `fuzz.py` is given a million bodies, guided by coverage where atheris is installed, else mutations of good
messages; then each method of a fleet, at every door, is sent some thousands. Writes `benchmarks/results/fuzz.md`; ends with
an error when anything but an answer for a caller came of it.
"""

import argparse
import asyncio
import importlib.util
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from interlock.inference.v1 import inference_service_pb2 as inference_pb
from interlock.router.v1 import router_service_pb2 as router_pb
from interlock.types.v1.tensor_pb2 import DATA_TYPE_INT64

from services.common.channels import open_channel
from tests.proof import oracle
from tests.proof.fleet import ROOT, Fleet, new_fleet
from tests.proof.fuzz import ask, mutated, targets
from tests.proof.fuzz_wire import Method, bugs, fuzz_grpc, fuzz_rest, inference_methods, router_methods
from tests.proof.history import Asked
from tests.proof.load import MODEL, OIP, OIP_JSON, PREDICT, PREDICT_JSON, PREDICT_ROWS

_RESULT = ROOT / "benchmarks" / "results" / "fuzz.md"
_SHOWN_CHARS = 2_000


@dataclass(frozen=True)
class Found:
    """What came of a target or a method."""

    name: str
    count: int
    seconds: float
    ended: str
    bug: str

    def row(self) -> str:
        """Return the row of the table."""
        return f"| {self.name} | {self.count:,} | {self.seconds:.0f} | {self.ended} | {'yes' if self.bug else 'none'} |"


def _guided(name: str, runs: int) -> Found:
    """Let libFuzzer look for bugs in a target, in a process of its own."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="il-") as folder:
        for number, body in enumerate(targets()[name].good):
            (Path(folder) / str(number)).write_bytes(body)
        options = [
            f"-atheris_runs={runs}",
            f"-artifact_prefix={folder}/bug-",
            "-timeout=10",
            "-rss_limit_mb=2048",
            folder,
        ]
        command = [sys.executable, "-m", "tests.proof.fuzz_guided", name, *options]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=ROOT, check=False)
    covered = re.findall(r" cov: (\d+)", done.stderr)
    end = f"{name}, exit {done.returncode}:\n{(done.stdout + done.stderr)[-_SHOWN_CHARS:]}"
    bug = end if done.returncode else ""
    return Found(
        name, runs, time.monotonic() - begun, f"{covered[-1] if covered else '?'} lines and branches covered", bug
    )


def _unguided(name: str, runs: int) -> Found:
    """Give a target mutations of good messages."""
    begun, target, draw, accepted = time.monotonic(), targets()[name], random.Random(name), 0
    body, bug = b"", ""
    try:
        for _ in range(runs):
            body = mutated(draw, target.good)
            accepted += ask(target, body)
    except Exception as error:  # noqa: BLE001 - whatever is raised is what was looked for
        bug = f"{name}: {error!r} for {body!r}"
    return Found(name, runs, time.monotonic() - begun, f"{100 * accepted / runs:.1f} % accepted", bug)


def _in_process(runs: int) -> list[Found]:
    is_guided = importlib.util.find_spec("atheris") is not None
    with (ThreadPoolExecutor if is_guided else ProcessPoolExecutor)(os.cpu_count()) as pool:
        found = []
        for one in pool.map(_guided if is_guided else _unguided, targets(), [runs] * len(targets())):
            sys.stdout.write(f"{one.row()}\n")
            sys.stdout.flush()
            found.append(one)
    return found


async def _over_the_wire(count: int) -> list[Found]:
    async with new_fleet() as fleet:
        before = _pids(fleet)
        places = [(edge.address, f"{edge.name}, ", _methods_of_router()) for edge in fleet.edges]
        places += [(replica.address, f"{replica.name}, ", _methods_of_replica()) for replica in fleet.replicas]
        found = [await one for address, name, methods in places for one in _asked(address, name, methods, count)]
        await fleet.until_whole()
        gone = before - _pids(fleet)
        bug = f"processes ended: {gone}\n{fleet.story()}" if gone else ""
        return [*found, Found("processes of the fleet", len(before), 0, f"{len(gone)} ended", bug)]


def _asked(address: str, place: str, methods: Sequence[Method], count: int) -> list[Coroutine[Any, Any, Found]]:
    found = [_by_grpc(address, place, method, count) for method in methods]
    if len(methods) > 3:
        found += [_by_rest(address, place, path, good, count) for path, good in _rest().items()]
    return found


async def _by_grpc(address: str, place: str, method: Method, count: int) -> Found:
    begun = time.monotonic()
    async with open_channel(address) as channel:
        parts = await asyncio.gather(*(fuzz_grpc(channel, method, count // 8, seed) for seed in range(8)))
    return _found(f"{place}{method.name}", count, begun, sum(parts, Counter[str]()))


async def _by_rest(address: str, place: str, path: str, good: Sequence[bytes], count: int) -> Found:
    begun = time.monotonic()
    async with httpx.AsyncClient(base_url=f"http://{address}", timeout=30, trust_env=False) as client:
        parts = await asyncio.gather(*(fuzz_rest(client, path, good, count // 8, seed) for seed in range(8)))
    return _found(f"{place}POST {path}", count, begun, sum(parts, Counter[str]()))


def _found(name: str, count: int, begun: float, ended: Counter[str]) -> Found:
    told = ", ".join(f"{found:,} {status}" for status, found in ended.most_common() if not status.startswith("BUG"))
    sys.stdout.write(f"{name}: {told}\n")
    sys.stdout.flush()
    return Found(name, count, time.monotonic() - begun, told, "\n".join(bugs(ended))[:_SHOWN_CHARS])


def _pids(fleet: Fleet) -> set[int]:
    """Return the processes, but for those of models: a model that runs for too long is ended, and that is right."""
    services = {process.pid for service in fleet.services for process in service.processes()}
    return services - {worker.pid for replica in fleet.replicas for worker in replica.workers()}


def _question(version: str = "1") -> Asked:
    return Asked(7, 0.0, "fuzz", (oracle.Row(7, 11),), version, 1.0)


def _methods_of_router() -> list[Method]:
    predict = PREDICT.encode(_question())
    asked = router_pb.PredictRequest.FromString(predict)
    opening = router_pb.PredictStreamOpen(model=MODEL, version="1")
    item = router_pb.PredictStreamItem(id=1, row=router_pb.PredictRow(features=asked.features))
    return router_methods(
        [predict], [PREDICT_ROWS.encode(_question())], [OIP.encode(_question())],
        router_pb.PredictStreamRequest(open=opening).SerializeToString(),
        [router_pb.PredictStreamRequest(item=item).SerializeToString()],
    )  # fmt: skip


def _methods_of_replica() -> list[Method]:
    opening = inference_pb.InferOpen(model=MODEL, version="1")
    batch = inference_pb.InferBatch(ids=[1], rows=[1], timeouts_us=[500_000])
    batch.tensors.add(name="x", data_type=DATA_TYPE_INT64, shape=[1, 4], data=oracle.packed([oracle.Row(7, 11)]))
    cancel = inference_pb.InferCancel(ids=[1])
    first, *more = (
        message.SerializeToString()
        for message in (
            inference_pb.CoalescedInferRequest(open=opening),
            inference_pb.CoalescedInferRequest(batch=batch),
            inference_pb.CoalescedInferRequest(cancel=cancel),
        )
    )
    return inference_methods([OIP.encode(_question())], [first, *more], first)


def _rest() -> dict[str, list[bytes]]:
    return {
        "/v1/predict": [PREDICT_JSON.encode(_question())],
        f"/v2/models/{MODEL}/infer": [OIP_JSON.encode(_question())],
    }


def _report(found: Sequence[Found], took_s: float) -> str:
    how = "guided by coverage (atheris)" if importlib.util.find_spec("atheris") else "mutations of good messages"
    setting = (
        f"`make soak`, {time.strftime('%Y-%m-%d', time.gmtime())}, {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}: {sum(one.count for one in found):,} bodies in {took_s / 60:.0f} minutes. First what reads each "
        f"message, in one process, {how}; then a fleet of processes, by its ports. A bug is anything but an answer, or a refusal "
        "as the caller's mistake (or for lack of time or room) whose text holds no names of ours; also for one item of a stream."
    )
    return "\n".join(
        [
            "# Bytes that are hardly a request: does anything fail?",
            "",
            setting,
            "",
            "| message | bodies | s | how they ended | bugs |",
            "|---|---|---|---|---|",
            *(one.row() for one in found),
            "",
        ]
    )


def _main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=1_000_000, help="for each message, in process")
    parser.add_argument("--over-the-wire", type=int, default=2_000, help="for each method at each port")
    parser.add_argument("--output", type=Path, default=_RESULT)
    given = parser.parse_args()
    begun = time.monotonic()
    found = _in_process(given.runs)
    found += asyncio.run(_over_the_wire(given.over_the_wire))
    text = _report(found, time.monotonic() - begun)
    given.output.write_text(text, "utf-8")
    told = [one.bug for one in found if one.bug]
    sys.stdout.write("\n".join([*told, text]))
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(_main())
