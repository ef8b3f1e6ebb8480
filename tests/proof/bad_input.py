"""Requests that are wrong in one known way, and bodies that are no request.

The same seed makes the same requests. Each is refused as the caller's mistake, by the right code and reason, and the message
names the field, what was wanted and what came; the router works on. `make test` asks a few hundred of them, `make soak` all
(`tests/proof/bad_input_soak.py`).
"""

import asyncio
import json
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from inference.grpc_service_pb2 import ModelInferRequest
from interlock.router.v1.router_service_pb2 import PredictRequest

from tests.fakes.router_models import FLIGHT, MIRROR, MIRROR_TYPES, PAIR
from tests.fakes.router_world import README, World

IN_FLIGHT = 32
_SIZES = dict(zip(MIRROR_TYPES, (1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 4, 8, 2, 5), strict=True))
_CONTENTS = ("bool", "int", "int64", "uint", "uint64", "fp32", "fp64", "bytes")


@dataclass(frozen=True)
class Wrong:
    """A request and what is wrong with it."""

    fault: str
    request: ModelInferRequest | PredictRequest | bytes
    """Bytes: a body of POST /v1/predict."""


class Stubs(Protocol):
    """Whoever has a router's stubs."""

    oip: Any
    router: Any


Infer = Callable[[random.Random, ModelInferRequest], None]


def wrong_tensors(random: random.Random) -> Wrong:
    """Return an OIP request that is right but for one thing about its tensors."""
    request = random.choice((_pair, _mirror, _flight))(random)
    fault = random.choice(list(_TENSOR_FAULTS))
    _TENSOR_FAULTS[fault](random, request)
    return Wrong(fault, request)


def wrong_features(random: random.Random) -> Wrong:
    """Return a prediction that is right but for one feature, for gRPC or as JSON."""
    features = dict(README["features"])
    fault = random.choice(("missing", "extra", "type", "value", "case"))
    name = random.choice([name for name in features if fault != "missing" or name not in ("month", "distance")])
    match fault:
        case "missing":
            del features[name]
        case "extra":
            features[_text(random) or "x"] = 1
        case "case":
            features[name.upper()] = features.pop(name)
        case "type":
            features[name] = random.choice(_other_types(features[name]))
        case _:
            name = random.choice(("carrier", "sched_dep_hour", "month"))
            refused = ["ZZ", "b6", "", "B6 "] if name == "carrier" else [-1, 24, 25, 2**31, -(2**63), 1.5, 1e300]
            features[name] = random.choice(refused)
    if random.random() < 0.5:
        return Wrong(f"feature {fault}", json.dumps({"model": FLIGHT, "features": features}).encode())
    request = PredictRequest(model=FLIGHT)
    for key, value in features.items():
        _set_value(request.features[key], value)
    return Wrong(f"feature {fault}", request)


def malformed_json(count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield bodies that are no JSON object, or none that a request may be."""
    good = json.dumps(README).encode()
    yield from _MALFORMED
    draw = random.Random(seed)
    for index in range(count - len(_MALFORMED)):
        at = draw.randrange(1, len(good) - 1)
        match index % 5:
            case 0:
                yield good[:at]
            case 1:
                yield good + bytes([draw.choice(b"{}[],:x1\x00")])
            case 2:
                # No such byte is in JSON, in a text neither.
                yield good[:at] + bytes([draw.choice((0, 1, 31, 0x80, 0xC0, 0xFF))]) + good[at:]
            case 3:
                yield b"[" * draw.randrange(1, 5_000) + good
            case _:
                yield good.replace(
                    b'"features": {', b'"features": ' + draw.choice((b"[", b"", b"{{", b"1 {", b"null, {"))
                )


def _pair(random: random.Random) -> ModelInferRequest:
    rows = random.randint(1, 4)
    request = ModelInferRequest(model_name=PAIR)
    request.inputs.add(name="x", datatype="FP64", shape=[rows, 2])
    request.raw_input_contents.append(struct.pack(f"<{2 * rows}d", *(random.gauss(0, 9) for _ in range(2 * rows))))
    return request


def _mirror(random: random.Random) -> ModelInferRequest:
    request = ModelInferRequest(model_name=MIRROR)
    for name in MIRROR_TYPES:
        request.inputs.add(name=f"in_{name}", datatype=name, shape=[1, 2])
        element = b"\x01\x00\x00\x00a" if name == "BYTES" else bytes(_SIZES[name])
        request.raw_input_contents.append(element * 2)
    return request


def _flight(random: random.Random) -> ModelInferRequest:
    request = ModelInferRequest(model_name=FLIGHT)
    request.inputs.add(name="words", datatype="BYTES", shape=[1, 3])
    request.inputs.add(name="numbers", datatype="FP32", shape=[1, 4])
    words = b"".join(struct.pack("<I", len(word)) + word for word in (b"B6", b"JFK", b"LAX"))
    request.raw_input_contents.extend([words, struct.pack("<4f", 17, 9, 5, 2475)])
    return request


def _some(random: random.Random, request: ModelInferRequest) -> int:
    return random.randrange(len(request.inputs))


def _rename(random: random.Random, request: ModelInferRequest) -> None:
    tensor = request.inputs[_some(random, request)]
    tensor.name = random.choice((tensor.name.swapcase(), tensor.name + " ", tensor.name[:-1], _text(random) + "?"))


def _drop(random: random.Random, request: ModelInferRequest) -> None:
    at = _some(random, request)
    del request.inputs[at], request.raw_input_contents[at]


def _repeat(random: random.Random, request: ModelInferRequest) -> None:
    at = _some(random, request)
    request.inputs.append(request.inputs[at])
    request.raw_input_contents.append(request.raw_input_contents[at])


def _add(random: random.Random, request: ModelInferRequest) -> None:
    request.inputs.add(name=_text(random) + "?", datatype="FP32", shape=[1, 1])
    request.raw_input_contents.append(bytes(4))


def _retype(random: random.Random, request: ModelInferRequest) -> None:
    tensor = request.inputs[_some(random, request)]
    others = [name for name in (*MIRROR_TYPES, "", "fp32", "FP8", "STRING", _text(random)) if name != tensor.datatype]
    tensor.datatype = random.choice(others)


def _reshape(random: random.Random, request: ModelInferRequest) -> None:
    tensor = request.inputs[_some(random, request)]
    rows, columns = tensor.shape
    shapes: tuple[list[int], ...] = (
        [],
        [rows],
        [columns * rows],
        [rows, columns, 1],
        [1, rows, columns],
        [rows, columns + 1],
        [-1, columns],
    )
    huge = ([2**31, 2**33], [-1, -columns], [2**63 - 1, columns], [-(2**63), 2], [0, columns], [rows, 0], [1] * 40)
    del tensor.shape[:]
    tensor.shape.extend(random.choice((*shapes, *huge)))


def _more_rows(random: random.Random, request: ModelInferRequest) -> None:
    """More rows than the bytes have, or than the other tensors."""
    at = _some(random, request)
    request.inputs[at].shape[0] += random.choice((1, 2, 1_000))


def _resize(random: random.Random, request: ModelInferRequest) -> None:
    at = _some(random, request)
    raw = request.raw_input_contents[at]
    cut, more = random.randrange(len(raw)), random.randbytes(random.randint(1, 9))
    request.raw_input_contents[at] = random.choice((raw[:cut], raw + more, b""))


def _recount(random: random.Random, request: ModelInferRequest) -> None:
    if random.random() < 0.5:
        del request.raw_input_contents[_some(random, request)]
    else:
        request.raw_input_contents.append(random.randbytes(random.randint(0, 9)))


def _both_forms(random: random.Random, request: ModelInferRequest) -> None:
    contents = request.inputs[_some(random, request)].contents
    kind = random.choice(_CONTENTS)
    getattr(contents, f"{kind}_contents").extend([b"a"] if kind == "bytes" else [1])


def _no_such_output(random: random.Random, request: ModelInferRequest) -> None:
    request.outputs.add(name=_text(random) + "?")


_TENSOR_FAULTS: dict[str, Infer] = {
    "name": _rename,
    "missing": _drop,
    "twice": _repeat,
    "extra": _add,
    "datatype": _retype,
    "shape": _reshape,
    "rows": _more_rows,
    "bytes": _resize,
    "count": _recount,
    "both forms": _both_forms,
    "output": _no_such_output,
}

_MALFORMED = (
    b"", b" ", b"\n", b"null", b"true", b"1", b"-", b'"text"', b"[]", b"[{}]", b"{", b"}", b"{]", b"[}", b"{}}", b"{}{}", b"{},",
    b"{'model': 1}", b"{model: 1}", b'{"model"}', b'{"model":}', b'{"model": ,}', b'{"model": "m",}', b'{,"model": "m"}',
    b'{"model": "m" "x": 1}', b'{"model": 01}', b'{"model": +1}', b'{"model": .5}', b'{"model": 1.}', b'{"model": 1e}',
    b'{"model": 0x10}', b'{"model": NaN}', b'{"model": Infinity}', b'{"model": -Infinity}', b'{"model": undefined}',
    b'{"model": TRUE}', b'{"model": "\\x41"}', b'{"model": "\\u12"}', b'{"model": "a\nb"}', b'{"model": "a\tb"}',
    b'{"model": "open', b'{"model": "a", "model": "b"}', b'{"model": /* no */ 1}', b"// no\n{}", b'\xef\xbb\xbf{"model": "m"}',
    b"\xff\xfe{\x00}\x00", b"\x00", b"\x1f\x8b\x08\x00", b"\x80\x81", b'{"model": "\xff"}', b'{"\xc0\x80": 1}', b"<model/>",
    b"model=m&x=1", b"---\nmodel: m\n", b'{"model": ' + b"9" * 5_000 + b"}", b'{"model": ' + b"[" * 100_000,
    b'{"a":' * 20_000, b'{"model": {}}', b'{"model": []}', b'{"model": 1}', b'{"model": null, "features": {}}', b"{}",
    b'{"model": "", "features": {}}', b'{"modle": "flight-delay"}', b'{"model": "flight-delay", "features": []}',
    b'{"model": "flight-delay", "features": {"carrier": {"a": 1}}}', b'{"model": "flight-delay", "features": "x"}',
    b'{"model": "flight-delay", "features": {"sched_dep_hour": 1e400}}', b'{"model": "flight-delay", "user_id": 1}',
)  # fmt: skip


def _text(random: random.Random) -> str:
    # Nothing of the range of surrogates, which no UTF-8 has.
    return "".join(
        chr(random.choice((random.randrange(1, 0xD800), random.randrange(32, 127)))) for _ in range(random.randrange(9))
    )


def _other_types(value: object) -> list[object]:
    if isinstance(value, str):
        return [1, 1.5, True, None, [], [value]]
    return ["17", "", True, False, [], [value]]


def _set_value(message: object, value: object) -> None:
    """Set the value of a feature, as far as contracts have one for it."""
    if value is None:
        message.null_value = 0  # type: ignore[attr-defined]
    elif isinstance(value, bool):
        message.bool_value = value  # type: ignore[attr-defined]
    elif isinstance(value, str):
        message.string_value = value  # type: ignore[attr-defined]
    elif isinstance(value, int):
        message.int64_value = value  # type: ignore[attr-defined]
    elif isinstance(value, float):
        message.double_value = value  # type: ignore[attr-defined]
    else:
        message.list_value.SetInParent()  # type: ignore[attr-defined]


async def faults_of(world: World, wrong: Wrong) -> str:
    """Ask for it; return what is wrong with the answer, or nothing."""
    if isinstance(wrong.request, bytes):
        status, body = await world.post("/v1/predict", wrong.request)
        return faults_of_json(status, body) or ("" if "want" in str(body) else f"want words, got {body}")
    return await faults_over_grpc(world, wrong)


async def faults_over_grpc(stubs: Stubs, wrong: Wrong) -> str:
    """Ask for it by gRPC, which has a message for it; return what is wrong with the answer, or nothing."""
    try:
        if isinstance(wrong.request, ModelInferRequest):
            await stubs.oip.ModelInfer(wrong.request, timeout=30)
        else:
            await stubs.router.Predict(wrong.request, timeout=30)
    except grpc.aio.AioRpcError as error:
        # An output is asked for by its name.
        code = grpc.StatusCode.NOT_FOUND if wrong.fault == "output" else grpc.StatusCode.INVALID_ARGUMENT
        return _faults_of_error(error, code)
    return f"{wrong.fault}: answered"


def faults_of_json(status: int, body: object) -> str:
    """Return what is wrong with the answer to a body that is wrong, or nothing."""
    # The protocol has an error form of its own.
    is_status = isinstance(body, dict) and ({"code", "message", "details"} <= body.keys() or body.keys() == {"error"})
    return "" if 400 <= status < 500 and is_status else f"want 4xx with a google.rpc.Status, got {status} {body}"


def _faults_of_error(error: grpc.aio.AioRpcError, code: grpc.StatusCode) -> str:
    if error.code() is not code:
        return f"want {code.name}, got {error.code().name}: {error.details()}"
    found = Status.FromString(dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b""))
    info, bad = ErrorInfo(), BadRequest()
    if sum(detail.Unpack(info) for detail in found.details) != 1:
        return f"want one ErrorInfo, got {len(found.details)} details: {error.details()}"
    any(detail.Unpack(bad) for detail in found.details)
    wrong = [(violation.field, violation.description) for violation in bad.field_violations]
    if not wrong or not all(field and "want" in text and "got" in text for field, text in wrong):
        return f"want each field with what was wanted and what came, got {wrong}: {error.details()}"
    return ""


async def ask_all(world: World, requests: Iterator[Wrong]) -> tuple[Counter[str], list[str]]:
    """Ask for all of them, some at a time; return how many of each fault, and what was wrong with answers."""
    asked: Counter[str] = Counter()
    found: list[str] = []

    async def ask() -> None:
        for wrong in requests:
            asked[wrong.fault] += 1
            fault = await faults_of(world, wrong)
            if fault:
                found.append(f"{wrong.fault}: {fault}")

    await asyncio.gather(*(ask() for _ in range(IN_FLIGHT)))
    return asked, found


async def faults_of_malformed(world: World, body: bytes) -> list[str]:
    """Send what is no request at all to every path with a body; return what is wrong with the answers."""
    answers = {path: await world.post(path, body) for path in ("/v1/predict", "/v1/predict_rows")}
    answers["infer"] = await world.infer(PAIR, body)
    faults = {path: faults_of_json(status, found) for path, (status, found) in answers.items()}
    return [f"malformed {path}: {fault}, for {body[:80]!r}" for path, fault in faults.items() if fault]


def requests(count: int, seed: int) -> Iterator[Wrong]:
    """Yield wrong requests, three of four of them tensors."""
    draw = random.Random(seed)
    for _ in range(count):
        yield (wrong_tensors if draw.random() < 0.75 else wrong_features)(draw)
