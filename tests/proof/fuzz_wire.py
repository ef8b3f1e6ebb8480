"""The same bytes that are hardly a request, sent to a service that runs.

Whatever comes, a service answers it, or refuses it as the caller's mistake: never INTERNAL or UNKNOWN, also not for one
item of a stream, and it works on.
"""

import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status
from inference import grpc_service_pb2 as oip_pb
from interlock.inference.v1 import inference_service_pb2 as inference_pb
from interlock.router.v1 import router_service_pb2 as router_pb

from tests.proof.fuzz import mutated

_ROUTER = "/interlock.router.v1.RouterService"
_OIP = "/inference.GRPCInferenceService"
# A model that is asked for an endless loop is stopped then.
_DEADLINE_S = 2.0
_BUGS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS}
_BUG_NUMBERS = {code.value[0] for code in _BUGS}


@dataclass(frozen=True)
class Method:
    """A method by its path, good requests, what it answers, and what is sent first where the request comes in a stream."""

    path: str
    good: Sequence[bytes]
    answer: type[Message]
    opening: bytes = b""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def router_methods(
    predict: Sequence[bytes], rows: Sequence[bytes], infer: Sequence[bytes], opening: bytes, items: Sequence[bytes]
) -> list[Method]:
    """Return the hot methods of a router, with good requests for them; `opening` and `items` are of PredictStream."""
    return [
        Method(f"{_ROUTER}/Predict", predict, router_pb.PredictResponse),
        Method(f"{_ROUTER}/PredictRows", rows, router_pb.PredictRowsResponse),
        # The same fields have the same numbers.
        Method(f"{_ROUTER}/PredictRowsStream", rows, router_pb.PredictRowsStreamResponse),
        Method(f"{_ROUTER}/PredictStream", [opening, *items], router_pb.PredictStreamResponse, opening),
        *_infer_methods(infer),
    ]


def inference_methods(infer: Sequence[bytes], coalesced: Sequence[bytes], opening: bytes) -> list[Method]:
    """Return the hot methods of a replica, with good requests for them; `opening` is of the coalesced stream."""
    path = "/interlock.inference.v1.InferenceService/CoalescedInfer"
    return [*_infer_methods(infer), Method(path, coalesced, inference_pb.CoalescedInferResponse, opening)]


def _infer_methods(infer: Sequence[bytes]) -> list[Method]:
    return [
        Method(f"{_OIP}/ModelInfer", infer, oip_pb.ModelInferResponse),
        Method(f"{_OIP}/ModelStreamInfer", infer, oip_pb.ModelStreamInferResponse),
    ]


async def fuzz_grpc(channel: grpc.aio.Channel, method: Method, count: int, seed: int) -> Counter[str]:
    """Send so many; return how many calls ended in each status, with "BUG" before those that nobody should get."""
    draw, ended = random.Random(f"{method.path} {seed}"), Counter[str]()
    for _ in range(count):
        bodies = [mutated(draw, method.good)]
        if method.opening and draw.random() < 0.7:
            bodies.insert(0, method.opening)
        ended[await _ask(channel, method, bodies)] += 1
    return ended


async def fuzz_rest(client: httpx.AsyncClient, path: str, good: Sequence[bytes], count: int, seed: int) -> Counter[str]:
    """Send so many bodies; return how many answers had each status."""
    draw, ended = random.Random(f"{path} {seed}"), Counter[str]()
    for _ in range(count):
        body = mutated(draw, good)
        found = await client.post(path, content=body, headers={"content-type": "application/json"})
        bug = found.status_code >= 500 and found.status_code != 504
        ended[f"BUG {found.status_code} {found.text} for {body!r}" if bug else str(found.status_code)] += 1
    return ended


def bugs(ended: Counter[str]) -> list[str]:
    """Return what nobody should get."""
    return [name for name in ended if name.startswith("BUG")]


async def _ask(channel: grpc.aio.Channel, method: Method, bodies: Sequence[bytes]) -> str:
    async def sent() -> AsyncIterator[bytes]:
        for body in bodies:
            yield body

    # On the wire a call with one message each way is a stream like any other.
    ask: Any = channel.stream_stream(method.path)
    call = ask(sent(), timeout=_DEADLINE_S)
    try:
        async for answer in call:
            if found := _bug_within(method.answer, answer):
                return f"BUG {method.name}: {found} for {bodies!r}"
    except grpc.aio.AioRpcError as error:
        if error.code() in _BUGS:
            return f"BUG {method.name}: {error.code().name} {error.details()} for {bodies!r}"
        return error.code().name
    return "OK"


def _bug_within(kind: type[Message], answer: bytes) -> str:
    """Return a status that nobody should get, from wherever it stands in an answer."""
    try:
        return next(
            (
                f"{found.code} {found.message}"
                for found in _statuses(kind.FromString(answer))
                if found.code in _BUG_NUMBERS
            ),
            "",
        )
    except DecodeError:
        return f"an answer that is no {kind.__name__}"


def _statuses(message: Message) -> list[Status]:
    if isinstance(message, Status):
        return [message]
    found: list[Status] = []
    for field, value in message.ListFields():
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for each in value if field.is_repeated else [value]:
                found += _statuses(each)
    return found
