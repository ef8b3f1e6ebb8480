"""The relay between two processes of inference, both ends in this one: what crosses it, and what happens when one end goes."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status
from inference import grpc_service_pb2 as oip
from prometheus_client import CollectorRegistry

from services.common.call import Binding, Call, methods_of
from services.common.chain import Chain, Limits
from services.common.criticality import Criticality
from services.common.errors import InvalidArgument, RelayedFailure, Violation, to_status
from services.common.metrics import RequestMetrics
from services.common.tracing import Tracing
from services.common.unimplemented import unimplemented_bindings
from services.inference.adapters.engine_link import EngineAway, EngineLink
from services.inference.servicer.relay import RelayServer, serve_relay

OIP = "inference.GRPCInferenceService"
INFER = f"{OIP}/ModelInfer"
LIMIT_BYTES = 1 << 20
Handler = Callable[[oip.ModelInferRequest, Call], Awaitable[bytes]]


@contextlib.asynccontextmanager
async def engine(path: Path, handler: Handler) -> AsyncIterator[RelayServer]:
    (refusing,) = (each.servicer for each in unimplemented_bindings(oip.DESCRIPTOR) if each.service == OIP)
    servicer = SimpleNamespace(**vars(refusing) | {"ModelInfer": handler})
    metrics = RequestMetrics("inference", CollectorRegistry())
    chain = Chain(limits=Limits(message_bytes=LIMIT_BYTES), metrics=metrics, tracing=Tracing("inference"))
    server = RelayServer(chain, methods_of([Binding(OIP, servicer, frozenset({"ModelInfer"}))]), LIMIT_BYTES)
    async with serve_relay(server, path, 0.0):
        yield server


@contextlib.asynccontextmanager
async def linked(path: Path, changes: list[bool] | None = None) -> AsyncIterator[EngineLink]:
    link = EngineLink(str(path), LIMIT_BYTES, (changes if changes is not None else []).append)
    running = asyncio.ensure_future(link.run())
    try:
        async with asyncio.timeout(10):
            await link.connected.wait()
        yield link
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def call_of(**changes: object) -> Call:
    values = {"method": INFER, "deadline": time.monotonic() + 10, **changes}
    return Call(**values)  # type: ignore[arg-type]


def request_of(name: str) -> bytes:
    return oip.ModelInferRequest(model_name=name).SerializeToString()


async def test_the_engine_sees_the_call_as_it_was_accepted(folder: Path) -> None:
    seen: list[Call] = []

    async def handler(request: oip.ModelInferRequest, call: Call) -> bytes:
        seen.append(call)
        return request.model_name.encode()

    accepted = call_of(
        criticality=Criticality.SHEDDABLE,
        request_id="r-1",
        traceparent="00-aa-bb-01",
        principal="p",
        metadata={"k": "ä"},
    )
    async with engine(folder / "s", handler), linked(folder / "s") as link:
        assert await link.ask(request_of("m"), accepted) == b"m"
    (got,) = seen
    for name in ("method", "deadline", "criticality", "request_id", "traceparent", "principal", "metadata"):
        assert getattr(got, name) == getattr(accepted, name), name


async def test_a_thousand_answers_find_their_callers_in_any_order(folder: Path) -> None:
    async def handler(request: oip.ModelInferRequest, call: Call) -> bytes:
        number = int(request.model_name)
        await asyncio.sleep((number * 7919 % 13) / 1000)
        return request.model_name.encode() + b"." * (number % 5 * 100_000)

    async with engine(folder / "s", handler) as server, linked(folder / "s") as link:
        answers = await asyncio.gather(*(link.ask(request_of(str(n)), call_of()) for n in range(1000)))
        assert [int(answer.rstrip(b".")) for answer in answers] == list(range(1000))
        assert server.chain.budget.used_bytes == 0


async def test_an_error_arrives_word_for_word(folder: Path) -> None:
    refused = InvalidArgument(
        "want ä", reason="INVALID_FIELD", metadata={"a": "b"}, violations=[Violation("x", "want 1")], retry_after_s=0.5
    )

    async def handler(request: oip.ModelInferRequest, call: Call) -> bytes:
        raise refused if request.model_name == "refused" else RuntimeError("secret")

    async def status_of(link: EngineLink, payload: bytes) -> Status:
        with pytest.raises(RelayedFailure) as failed:
            await link.ask(payload, call_of(request_id="r-2"))
        return to_status(failed.value, "another id")

    async with engine(folder / "s", handler), linked(folder / "s") as link:
        assert await status_of(link, request_of("refused")) == to_status(refused, "r-2")
        bug = await status_of(link, request_of("bug"))
        assert (bug.code, "secret" in bug.message, "r-2" in bug.message) == (Code.INTERNAL, False, True)
        assert (await status_of(link, b"\xff\xff")).code == Code.INVALID_ARGUMENT


async def test_a_cancelled_call_is_taken_back_and_the_others_go_on(folder: Path) -> None:
    ended: dict[str, str] = {}
    begun = asyncio.Event()

    async def handler(request: oip.ModelInferRequest, call: Call) -> bytes:
        begun.set()
        try:
            await asyncio.sleep(0 if request.model_name == "short" else 60)
        except asyncio.CancelledError:
            ended[request.model_name] = "cancelled"
            raise
        return b"done"

    async with engine(folder / "s", handler) as server, linked(folder / "s") as link:
        long = asyncio.ensure_future(link.ask(request_of("long"), call_of()))
        await begun.wait()
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)
        assert await link.ask(request_of("short"), call_of()) == b"done"
        async with asyncio.timeout(5):
            while server.chain.budget.used_bytes:
                await asyncio.sleep(0.01)
        assert ended == {"long": "cancelled"}


async def test_the_engine_keeps_the_deadline_of_a_call(folder: Path) -> None:
    async def handler(request: oip.ModelInferRequest, call: Call) -> bytes:
        await asyncio.sleep(60)
        return b""

    async with engine(folder / "s", handler) as server, linked(folder / "s") as link, asyncio.timeout(10):
        with pytest.raises(RelayedFailure) as failed:
            await link.ask(request_of("m"), call_of(deadline=time.monotonic() + 0.05))
        assert failed.value.status.code == Code.DEADLINE_EXCEEDED
        assert server.chain.budget.used_bytes == 0


async def test_calls_of_a_process_that_is_gone_are_given_up(folder: Path) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(request: oip.ModelInferRequest, call: Call) -> bytes:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return b""

    async with engine(folder / "s", handler):
        async with linked(folder / "s") as link:
            asking = asyncio.ensure_future(link.ask(request_of("m"), call_of()))
            await begun.wait()
        async with asyncio.timeout(5):
            await cancelled.wait()
        with pytest.raises(EngineAway):
            await asking


async def test_without_an_engine_calls_fail_at_once_and_with_the_next_they_are_answered(folder: Path) -> None:
    async def handler(request: oip.ModelInferRequest, call: Call) -> bytes:
        if request.model_name == "last":
            await asyncio.sleep(60)
        return b"done"

    changes: list[bool] = []
    async with contextlib.AsyncExitStack() as stack:
        first = contextlib.AsyncExitStack()
        server = await first.enter_async_context(engine(folder / "s", handler))
        link = await stack.enter_async_context(linked(folder / "s", changes))
        asking = asyncio.ensure_future(link.ask(request_of("last"), call_of()))
        assert await link.ask(request_of("m"), call_of()) == b"done"
        for each in list(server.connections.links):
            each.abort()
        with pytest.raises(EngineAway):
            await asking
        await first.aclose()
        async with asyncio.timeout(5):
            while changes[-1]:
                await asyncio.sleep(0.01)
        with pytest.raises(EngineAway):
            await link.ask(request_of("m"), call_of())
        await stack.enter_async_context(engine(folder / "s", handler))
        async with asyncio.timeout(5):
            while not changes[-1]:
                await asyncio.sleep(0.01)
        assert await link.ask(request_of("m"), call_of()) == b"done"
