"""Callers that open streams, send all that they may, and never read: what does a server hold for them?

    python -m benchmarks.stalled_streams            writes benchmarks/results/stalled_streams.md

500 streams of ModelStreamInfer over 10 connections, each eager to send 128 messages of 64 KiB whose answers are as large,
to each of our doors and paths. The callers' own windows are 64 KiB a stream. Resident memory is read while they stall;
other calls and streams go on meanwhile, over a connection of their own and over one that stalls, those from 5 to 25 s compared
with the same on the idle server. After 25 s every second stream is read to its end, and each answer is compared; the others are looked at
again after 45 s, when their time to read is over, and end: with STREAM_STALLED, or where grpcio's client was in the middle of a
write with its own word for that (INTERNAL).
"""

import argparse
import asyncio
import os
import platform
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_status import rpc_status
from inference import grpc_service_pb2 as oip
from inference import grpc_service_pb2_grpc as oip_rpc
from onnx import TensorProto, helper

from benchmarks.serving.models import Model
from benchmarks.serving.servers import OURS, Server, all_servers
from services.common.errors import STREAM_STALLED, status_reason
from tests.proof.processes import resident_bytes

RESULT = Path(__file__).resolve().parent / "results" / "stalled_streams.md"
STREAMS, CONNECTIONS, MESSAGES = 500, 10, 128
FLOATS = 16_384
LOOKS_S = (5, 15, 25, 45)
READ_S = 25
_OPTIONS = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536), ("grpc.use_local_subchannel_pool", 1)]


def _echo() -> bytes:
    shape = [None, FLOATS]
    tensors = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "echo", *tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


ECHO = Model("echo", (FLOATS,), FLOATS, _echo)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--servers", nargs="+", default=OURS, choices=OURS)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="il-"))
    lines = []
    try:
        ECHO.write(folder)
        for name in arguments.servers:
            state = Path(tempfile.mkdtemp(dir=folder))
            with all_servers(state, [name], "0,1", models=[ECHO]) as (servers, _):
                lines.append(asyncio.run(_measure(servers[name])))
                print(lines[-1], flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    arguments.output.write_text(_report(lines), "utf-8")


async def _measure(server: Server) -> str:
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=_OPTIONS) for _ in range(CONNECTIONS + 1)]
    *stubs, other = [oip_rpc.GRPCInferenceServiceStub(channel) for channel in channels]
    others = (other, stubs[0])
    free_s = await _ask_others(others, 5)
    before = _resident_mib(server)
    calls = [stubs[at % CONNECTIONS].ModelStreamInfer(_requests(at)) for at in range(STREAMS)]
    # A call of grpc.aio sends from its own task; nobody reads.
    begun, held, taken_s, read = time.monotonic(), [], [], []
    for look_s in LOOKS_S:
        asked_s = await _ask_others(others, begun + look_s - time.monotonic())
        # Not while half a gigabyte comes in, nor when hundreds end: that is work, and not what stalled streams cost.
        taken_s += asked_s if LOOKS_S[0] < look_s <= READ_S else []
        held.append(_resident_mib(server))
        if look_s == READ_S:
            read = await asyncio.gather(*(_read(call, at) for at, call in enumerate(calls) if at % 2))
    stalled = await asyncio.gather(*(_read(call, at) for at, call in enumerate(calls) if not at % 2))
    for channel in channels:
        await channel.close()
    await asyncio.sleep(2)
    cells = [f"{mib:,.0f}" for mib in (before, *held, _resident_mib(server))]
    cells.append(" / ".join(f"{np.percentile(taken, q) * 1e3:.1f}" for taken in (free_s, taken_s) for q in (50, 99)))
    cells.append(f"{sum(right == MESSAGES for right, _ in read)} of {len(read)}")
    ends = Counter(end for _, end in stalled)
    print(ends, flush=True)
    answers = sum(right for right, _ in stalled)
    cells.append(f"{ends[STREAM_STALLED]} of {len(stalled)}, after {answers:,} right answers")
    return f"| {server.name} | {' | '.join(cells)} |"


async def _ask_others(stubs: Sequence[Any], for_s: float) -> list[float]:
    """Call in turn over these connections, as a call and as a stream of one; returns the seconds that each took."""
    end, taken_s = time.monotonic() + for_s, []
    while (started := time.monotonic()) < end:
        stub, request = stubs[len(taken_s) % 2], _request(STREAMS, len(taken_s))
        if len(taken_s) % 4 < 2:
            await stub.ModelInfer(request, timeout=30)
        else:
            [_] = [answer async for answer in stub.ModelStreamInfer(iter([request]), timeout=30)]
        taken_s.append(time.monotonic() - started)
        await asyncio.sleep(0.05)
    return taken_s


def _requests(stream: int) -> Iterator[oip.ModelInferRequest]:
    return (_request(stream, number) for number in range(MESSAGES))


def _request(stream: int, number: int) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=ECHO.name, id=f"{stream}-{number}")
    request.inputs.add(name="x", datatype="FP32", shape=[1, FLOATS])
    request.raw_input_contents.append(np.full(FLOATS, stream * MESSAGES + number, "<f4").tobytes())
    return request


async def _read(call: "grpc.aio.StreamStreamCall", stream: int) -> tuple[int, str]:
    """Read a stream to its end; returns how many of its messages were answered, each once, and why it ended."""
    seen, end = set(), ""
    try:
        async for response in call:
            answer = response.infer_response
            wanted = np.full(FLOATS, stream * MESSAGES + int(answer.id.partition("-")[2] or -1), "<f4").tobytes()
            assert answer.id.startswith(f"{stream}-"), f"an answer of another stream than {stream}: {answer.id}"
            assert list(answer.raw_output_contents) == [wanted], f"a wrong answer: {answer.id}"
            seen.add(answer.id)
    except grpc.aio.AioRpcError as error:
        status = rpc_status.from_call(error)
        end = status_reason(status) if status is not None else f"{error.code().name} {error.details()}"
    return len(seen), end


def _resident_mib(server: Server) -> float:
    return resident_bytes(process.pid for process in server.processes) / 2**20


def _report(lines: Sequence[str]) -> str:
    looks = " | ".join(f"{look_s} s" for look_s in LOOKS_S)
    return f"""# Stalled streams

`python -m benchmarks.stalled_streams`, {time.strftime("%Y-%m-%d", time.gmtime())}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}.
{(__doc__ or "").partition("stalled_streams.md")[2].strip()}

| resident memory, MiB | before | {looks} | after all were read | others alone, and meanwhile: p50 / p99 ms | read to the end after 25 s, all right | told STREAM_STALLED |
|---|---{"|---" * len(LOOKS_S)}|---|---|---|---|
{chr(10).join(lines)}
"""


if __name__ == "__main__":
    main()
