"""Load with every outcome counted: bounded calls in flight, each answered, refused or lost."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import grpc
import httpx
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from interlock.router.v1 import router_service_pb2 as pb
from interlock.router.v1 import router_service_pb2_grpc as rpc

from interlock_sdk.values import Value, values_to_proto

CALL_TIMEOUT_S = 20.0
# grpcio's and Envoy's words.
_NEVER_ARRIVED: Final = ("failed to connect", "Connection refused", "no healthy upstream", "remote connection failure")


class Refused(Exception):
    """The call was not accepted, and the caller was told so or could not even connect; it may simply try again."""


class Lost(Exception):
    """The call was accepted, as far as the caller can know, and got no answer, or an answer that blames nobody."""


# Makes one call, given its number; raises Refused or Lost, returns the answer's version.
Call = Callable[[int], Awaitable[str]]


@dataclass
class Outcomes:
    """What became of every call."""

    answered: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)

    @property
    def answered_count(self) -> int:
        return self.answered.total()

    def note(self, error: Refused | Lost) -> None:
        (self.refused if isinstance(error, Refused) else self.lost)[str(error)] += 1


@dataclass
class Load:
    """Calls that go on until the block ends."""

    outcomes: Outcomes
    _progress: asyncio.Condition

    async def until_answered(self, more: int) -> None:
        """Return when this many further calls have been answered."""
        wanted = self.outcomes.answered_count + more
        async with asyncio.timeout(60), self._progress:
            await self._progress.wait_for(lambda: self.outcomes.answered_count >= wanted)


@asynccontextmanager
async def under_load(call: Call, *, in_flight: int = 16) -> AsyncIterator[Load]:
    """Keep `in_flight` calls going while the block runs, then let the last ones finish."""
    load, stop, numbers = Load(Outcomes(), asyncio.Condition()), asyncio.Event(), count()

    async def work() -> None:
        while not stop.is_set():
            try:
                load.outcomes.answered[await call(next(numbers))] += 1
            except (Refused, Lost) as error:
                load.outcomes.note(error)
                # Whoever is refused comes back a little later, not at once.
                await asyncio.sleep(0.01)
            async with load._progress:
                load._progress.notify_all()

    async with asyncio.TaskGroup() as group:
        workers = [group.create_task(work()) for _ in range(in_flight)]
        try:
            yield load
        finally:
            stop.set()
            await asyncio.wait(workers, timeout=2 * CALL_TIMEOUT_S)


@asynccontextmanager
async def grpc_predict(
    address: str, model: str, features: Mapping[str, Value], *, channels: int = 4
) -> AsyncIterator[Call]:
    """Give a call that predicts over gRPC, spread over several connections.

    No retry policy: grpcio only sends again what a server says it never began. The threaded client: grpc.aio shares one
    poller between all event loops of a process, and its end may hang when a test's loop goes before its last call.
    """
    options = [("grpc.use_local_subchannel_pool", 1)]
    opened = [grpc.insecure_channel(address, options=options) for _ in range(channels)]
    stubs = [rpc.RouterServiceStub(channel) for channel in opened]
    values = values_to_proto(features)

    async def call(number: int) -> str:
        request = pb.PredictRequest(model=model, features=values, user_id=f"u-{number}")
        try:
            running = stubs[number % channels].Predict.future(request, timeout=CALL_TIMEOUT_S)
            return (await _answer_of(running)).prediction.model_version
        except grpc.RpcError as error:
            raise _grpc_outcome(error) from None

    try:
        yield call
    finally:
        for channel in opened:
            channel.close()


@asynccontextmanager
async def rest_predict(address: str, model: str, features: Mapping[str, Value]) -> AsyncIterator[Call]:
    """Give a call that predicts over REST on connections that are kept alive."""
    async with httpx.AsyncClient(base_url=f"http://{address}", timeout=CALL_TIMEOUT_S, trust_env=False) as client:

        async def call(number: int) -> str:
            body = {"model": model, "features": dict(features), "user_id": f"u-{number}"}
            steps: list[str] = []

            async def trace(step: str, _: object) -> None:
                steps.append(step)

            try:
                response = await client.post("/v1/predict", json=body, extensions={"trace": trace})
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                raise Refused(type(error).__name__) from None
            except (httpx.ReadError, httpx.WriteError) as error:
                # A listener that closes resets connections that the kernel took and no process ever accepted. Only a
                # connection opened for this very call can be one of them.
                if "connection.connect_tcp.complete" in steps:
                    raise Refused(f"{type(error).__name__} on a new connection") from None
                raise Lost(f"{type(error).__name__} on a connection in use") from None
            except httpx.HTTPError as error:
                raise Lost(f"{type(error).__name__}: {error}") from None
            return _rest_outcome(response)

        yield call


async def _answer_of(running: Any) -> pb.PredictResponse:
    """Wait, on this loop, for a call that grpcio's threads carry."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    running.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
    await done.wait()
    answer: pb.PredictResponse = running.result()
    return answer


def _grpc_outcome(error: Any) -> Refused | Lost:
    text = f"{error.code().name}: {error.details()}"
    reason = _reason(error)
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED) and reason:
        return Refused(f"{error.code().name} {reason}")
    if error.code() is grpc.StatusCode.UNAVAILABLE and _never_arrived(error.details() or ""):
        return Refused(text)
    return Lost(text)


def _never_arrived(text: str) -> bool:
    """Whether these are a transport's words for a call that reached nobody; a connection cut later is not among them."""
    return any(words in text for words in _NEVER_ARRIVED)


def _reason(error: Any) -> str:
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
            return info.reason
    return ""


def _rest_outcome(response: httpx.Response) -> str:
    if response.is_success:
        return str(response.json()["model_version"])
    text = f"{response.status_code}: {response.text[:200]}"
    if response.status_code in (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.TOO_MANY_REQUESTS) and (
        '"reason"' in response.text or _never_arrived(response.text)
    ):
        raise Refused(text)
    raise Lost(text)
