"""The service that the door suite asks: the same object behind every door."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from google.api.httpbody_pb2 import HttpBody
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from services.common.call import Binding, Call, Reply, answers_many, begun_by
from services.common.chain import parse_message
from services.common.edge.settings import EdgeSettings
from services.common.errors import InvalidArgument, NotFound, Violation
from services.common.server import Runtime
from services.common.stream_answers import Streams, Work

PROBE = "doortest.v1.ProbeService"
TWIN = "doortest.v1.ProbeHttpService"
HOT = frozenset({f"{PROBE}/Echo", f"{TWIN}/Echo", f"{TWIN}/Infer"})
PROTO = Path(__file__).with_name("doortest.proto")


def compile_contract(target: Path) -> None:
    """Write the descriptor set of the test contract."""
    import google.api  # noqa: PLC0415

    include = Path(next(iter(google.api.__path__))).parents[1]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO.parent}", f"-I{include}", "--include_imports"]
    inputs = [PROTO.name, "google/rpc/error_details.proto"]
    subprocess.run([*command, f"--descriptor_set_out={target}", *inputs], check=True, timeout=30)


def load_contract(path: Path) -> None:
    """Add the test contract to the default pool; Google's files in it are there already."""
    pool = descriptor_pool.Default()
    for file in FileDescriptorSet.FromString(path.read_bytes()).file:
        if file.name == PROTO.name:
            pool.AddSerializedFile(file.SerializeToString())


def message(name: str) -> Any:
    """Return a message class of the test contract."""
    return message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(f"doortest.v1.{name}"))


class PromptEcho:
    """An echo that needs no task, due in some seconds."""

    def __init__(self, probe: "ProbeServicer", request: Any, call: Call, reply: Reply) -> None:
        self._probe = probe
        self._request = request
        self._call = call
        self._reply = reply
        self._timer = asyncio.get_running_loop().call_later(request.sleep_s, self._answer)
        probe.running += 1

    def _answer(self) -> None:
        self._probe.running -= 1
        self._reply.answer(self._probe.echo_of(self._request, self._call).SerializeToString())

    def take_back(self) -> None:
        self._timer.cancel()
        self._probe.running -= 1
        self._probe.cancelled += 1


class ProbeServicer:
    """Does what the request says; what waits or answers at once does so without a task if its id is odd."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self.cancelled = 0
        self.running = 0

    def begin_echo(self, payload: bytes, call: Call, reply: Reply) -> PromptEcho | None:
        request = parse_message(message("EchoRequest"), payload)
        prompt = request.id % 2 and request.action in {"", "sleep"} and not request.count
        return PromptEcho(self, request, call, reply) if prompt else None

    @begun_by(begin_echo)
    async def Echo(self, request: Any, call: Call) -> Any:
        await self._act(request.action, request.sleep_s, request.text)
        call.trailers["x-probe-trailer"] = "after"
        call.initial_metadata["x-probe-initial"] = "before"
        return self.echo_of(request, call)

    def echo_of(self, request: Any, call: Call) -> Any:
        return message("EchoResponse")(
            id=request.id,
            payload=request.payload,
            text=request.text or self._told(request.action),
            metadata=dict(call.metadata) if request.count else {},
            remaining_s=call.remaining_s(),
        )

    EchoCold = Echo

    def _told(self, action: str) -> str:
        return str(os.getpid()) if action == "pid" else f"running={self.running} cancelled={self.cancelled}"

    async def Count(self, request: Any, call: Call) -> AsyncIterator[Any]:
        for index in range(request.count):
            await asyncio.sleep(request.sleep_s)
            yield message("EchoResponse")(id=index, text=request.text)

    async def Collect(self, requests: AsyncIterator[Any], call: Call) -> Any:
        return message("EchoResponse")(id=sum([request.id async for request in requests]))

    @answers_many
    def Chat(self, requests: AsyncIterator[Any], call: Call) -> AsyncIterator[bytes]:
        return self._streams.answers(requests, call, Work(self.Echo, None))

    async def _act(self, action: str, sleep_s: float, text: str) -> None:
        if action == "fail":
            raise InvalidArgument(
                f"want Straße, got {text}",
                reason="INVALID_FIELD",
                metadata={"text": text},
                violations=[Violation("text", "want 100 % of ä, got ü")],
            )
        if action == "bug":
            raise RuntimeError("secret path /srv/keys")
        if action == "exit":
            raise SystemExit(3)
        if action == "block":
            time.sleep(sleep_s)  # noqa: ASYNC251 - a handler that blocks the loop is what is tested
        if action == "sleep":
            self.running += 1
            try:
                await asyncio.sleep(sleep_s)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            finally:
                self.running -= 1


class ProbeHttpServicer:
    """The twins: JSON in, JSON out."""

    def __init__(self, probe: ProbeServicer) -> None:
        self._probe = probe

    async def Echo(self, request: Any, call: Call) -> HttpBody:
        body = json.loads(request.body.data or b"{}")
        await self._probe._act(body.get("action", ""), body.get("sleep_s", 0.0), body.get("text", ""))
        if body.get("action") == "missing":
            raise NotFound("no such thing", reason="INVALID_NAME", metadata={"name": "thing"})
        if body.get("action") == "teapot":
            call.initial_metadata["x-interlock-http-status"] = "418"
        call.initial_metadata["x-probe-initial"] = "before"
        answer = {
            "body": body,
            "content_type": request.body.content_type,
            "model": request.model,
            "version": request.version,
            "header_length": call.metadata.get("inference-header-content-length", ""),
            "principal": call.metadata.get("x-interlock-principal", "none"),
            "traceparent": call.metadata.get("traceparent", ""),
        }
        return HttpBody(content_type=body.get("answer_type", "application/json"), data=json.dumps(answer).encode())

    Infer = Echo
    Cold = Echo


class ProbeSettings(EdgeSettings):
    """What the suite's service reads."""

    doortest_descriptors: Path
    doortest_processes: int = 1

    @property
    def processes(self) -> int:
        return self.doortest_processes


@asynccontextmanager
async def build(settings: ProbeSettings, runtime: Runtime[ProbeSettings]) -> AsyncIterator[Sequence[Binding]]:
    load_contract(settings.doortest_descriptors)
    runtime.health.set("", serving=True)
    probe = ProbeServicer(runtime.streams)
    yield [
        Binding(PROBE, probe, frozenset({"Echo"})),
        Binding(TWIN, ProbeHttpServicer(probe), frozenset({"Echo", "Infer"})),
    ]
