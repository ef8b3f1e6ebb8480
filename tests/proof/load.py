"""An open-loop load over every form in which the suite is asked, each request and each answer told to the judge.

Requests arrive by a Poisson process, whether or not earlier ones have been answered. Some are withdrawn, some have a
deadline that they may miss, some hold a row that makes the model raise, some make their batch slow.
"""

import asyncio
import base64
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from inference import grpc_service_pb2 as oip_pb
from interlock.router.v1 import router_service_pb2 as router_pb
from interlock.types.v1.feature_value_pb2 import FeatureValue

from tests.proof import oracle
from tests.proof.history import OK, Answered, Asked, Cancelled, Cut, Event, Judge, Result, Unprocessed
from tests.proof.oracle import COLUMNS, Row
from tests.proof.wire import Wire, WireCall, Wires, grpc_frame, request_headers

MODEL: Final = "oracle"
_STATUS: Final = {code.value[0]: code.name for code in grpc.StatusCode}
# What the services give a call that names no deadline; REST has no header for one.
_REST_DEADLINE_S: Final = 5.0
_HTTP_STATUS: Final = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


@dataclass(frozen=True, slots=True)
class Form:
    """One way to ask: its path and type, how a request becomes a body, and how a body becomes results."""

    name: str
    content_type: str
    path: Callable[[Asked], str]
    encode: Callable[[Asked], bytes]
    decode: Callable[[bytes], tuple[tuple[Result, ...], str | None]]
    most_rows: int = 1

    @property
    def is_grpc(self) -> bool:
        return self.content_type == "application/grpc"


@dataclass(frozen=True, slots=True)
class Surface:
    """A form at an address."""

    name: str
    form: Form
    wires: Wires
    pinned: bool = False
    """Whether every request must name a version: inference has no routes."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of the unusual requests, 0 to 1."""

    cancelled: float = 0.04
    hurried: float = 0.03
    poisoned: float = 0.01
    slow: float = 0.01
    pinned: float = 0.2
    slow_turns: int = 20_000
    deadline_s: float = 3.0


@dataclass
class Load:
    """Sends requests over surfaces and tells the judge all that comes of them."""

    surfaces: Sequence[Surface]
    mix: Mix = field(default_factory=Mix)
    seed: int = 1
    in_flight_limit: int = 1_000
    judge: Judge = field(default_factory=Judge)
    record: Callable[[Event], None] | None = None
    sent: int = 0
    not_sent: int = 0
    """Arrivals while too many were in flight, or while a surface had no connection."""
    pinned: tuple[str, ...] = ("1", "2")
    """Versions that may be asked for by name."""
    since: Counter[str] = field(default_factory=Counter)
    """How requests ended that were asked since `clear`: by status, by surface and status, and OK ones by version."""
    ended_since: int = 0
    cleared_at: float = 0.0
    turn: int = 0
    """Counts faults, so that each hits another process."""

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        self._next_row = 0

    def tell(self, event: Event) -> None:
        """Give an event to the judge, and to the record if one is kept."""
        if self.record is not None:
            self.record(event)
        self.judge.take(event)

    def now(self) -> float:
        """Return the time that all events are in."""
        return time.monotonic()

    def clear(self) -> None:
        """Begin to count answers anew."""
        self.since.clear()
        self.ended_since = 0
        self.cleared_at = self.now()

    async def run(self, rate: float, until: Callable[[], bool]) -> None:
        """Send at `rate` requests a second until told otherwise."""
        next_at = self.now()
        while not until():
            next_at += self._draw.expovariate(rate)
            pause = next_at - self.now()
            # A loop that is behind sends at once; it yields all the same, for the answers.
            await asyncio.sleep(max(0.0, pause) if pause > 0.002 else 0)
            self.send(self._draw.choice(self.surfaces))

    async def settle(self, timeout_s: float) -> None:
        """Wait until nothing is open any more; what still is after that is the judge's to name."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.judge.open_count:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pass

    def send(self, surface: Surface) -> None:
        """Send one request over a surface, if it can take one."""
        wire = surface.wires.pick() if self.judge.open_count < self.in_flight_limit else None
        if wire is None:
            self.not_sent += 1
            return
        draw, mix = self._draw, self.mix
        count = 1 if surface.form.most_rows == 1 else draw.choice((1, 1, 1, 2, surface.form.most_rows))
        rows = [Row(self._next_row + at, draw.randrange(oracle.PAYLOADS)) for at in range(count)]
        self._next_row += count
        kind = draw.random()
        deadline_s, cancel_after_s = mix.deadline_s if surface.form.is_grpc else _REST_DEADLINE_S, None
        if kind < mix.cancelled:
            cancel_after_s = draw.expovariate(200)
        elif kind < mix.cancelled + mix.hurried and surface.form.is_grpc:
            deadline_s = draw.uniform(0.001, 0.02)
        elif kind < mix.cancelled + mix.hurried + mix.poisoned:
            at = draw.randrange(count)
            rows[at] = rows[at]._replace(poison=1)
        elif kind < mix.cancelled + mix.hurried + mix.poisoned + mix.slow:
            rows[0] = rows[0]._replace(turns=mix.slow_turns)
        version = draw.choice(self.pinned) if surface.pinned or draw.random() < mix.pinned else ""
        asked = Asked(self.sent, self.now(), surface.name, tuple(rows), version, deadline_s)
        self.sent += 1
        _OneCall(self, asked, surface).start(wire, cancel_after_s)

    def over(self, asked: Asked, status: str, results: Sequence[Result] = ()) -> None:
        """Count an end."""
        if asked.at >= self.cleared_at:
            self.ended_since += 1
            self.since[status] += 1
            self.since[f"{asked.surface} {status}"] += 1
            for version in {result.version for result in results}:
                self.since[f"version {version}"] += 1


class _OneCall:
    """A request on its way."""

    __slots__ = ("_asked", "_load", "_surface")

    def __init__(self, load: Load, asked: Asked, surface: Surface) -> None:
        self._load = load
        self._asked = asked
        self._surface = surface

    def start(self, wire: Wire, cancel_after_s: float | None) -> None:
        asked, form = self._asked, self._surface.form
        body = form.encode(asked)
        extra = [("te", "trailers"), ("grpc-timeout", f"{round(asked.deadline_s * 1e6)}u")] if form.is_grpc else []
        headers = request_headers(self._surface.wires.authority, form.path(asked), form.content_type, extra)
        self._load.tell(asked)
        stream = wire.call(headers, grpc_frame(body) if form.is_grpc else body, self)
        if cancel_after_s is not None:
            asyncio.get_running_loop().call_later(cancel_after_s, self._cancel, wire, stream)

    def _cancel(self, wire: Wire, stream: int) -> None:
        if wire.cancel(stream):
            self._load.tell(Cancelled(self._asked.id, self._load.now()))
            self._load.over(self._asked, "cancelled")

    def replied(self, call: WireCall) -> None:
        at = self._load.now()
        found = _grpc_answers(self._asked, self._surface.form, call, at) if self._surface.form.is_grpc else [
            _http_answer(self._asked, self._surface.form, call, at)
        ]  # fmt: skip
        for answered in found:
            self._load.tell(answered)
        self._load.over(self._asked, found[0].status, found[0].results)

    def unprocessed(self) -> None:
        self._load.tell(Unprocessed(self._asked.id, self._load.now()))
        self._load.over(self._asked, "unprocessed")

    def cut(self) -> None:
        self._load.tell(Cut(self._asked.id, self._load.now()))
        self._load.over(self._asked, "cut")


def _grpc_answers(asked: Asked, form: Form, call: WireCall, at: float) -> list[Answered]:
    """Return what a unary call was answered: one answer, more when the server sent more than one message."""
    if call.reset is not None or "grpc-status" not in call.headers:
        return [Answered(asked.id, at, f"RESET {call.reset} {call.headers.get(':status', '')}")]
    status = _STATUS[int(call.headers["grpc-status"])]
    if status != OK:
        text = call.headers.get("grpc-message", "")
        return [Answered(asked.id, at, status, _grpc_reason(call.headers), text=text)]
    found = [(form.decode(message)) for message in call.messages()]
    return [Answered(asked.id, at, OK, results=results, echoed=echoed) for results, echoed in found] or [
        Answered(asked.id, at, OK)
    ]


def _grpc_reason(headers: dict[str, str]) -> str:
    packed = headers.get("grpc-status-details-bin", "")
    return _reason(status_pb2.Status.FromString(base64.b64decode(packed + "=" * (-len(packed) % 4))))


def _reason(status: status_pb2.Status) -> str:
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason
    return ""


def _http_answer(asked: Asked, form: Form, call: WireCall, at: float) -> Answered:
    body = b"".join(call.data)
    if call.reset is not None:
        return Answered(asked.id, at, f"RESET {call.reset}")
    code = int(call.headers[":status"])
    if code == 200:
        results, echoed = form.decode(body)
        return Answered(asked.id, at, OK, results=results, echoed=echoed)
    text = body.decode(errors="replace")[:200]
    status = _HTTP_STATUS.get(code, f"HTTP {code}")
    return Answered(asked.id, at, status, _http_reason(body), text=text)


def _http_reason(body: bytes) -> str:
    """Return the reason of a JSON error; the Open Inference Protocol's errors are one text and have none."""
    try:
        error = json.loads(body)
    except ValueError:
        return ""
    if "error" in error:
        return "TEXT" if error["error"] else ""
    return next((one["reason"] for one in error.get("details", ()) if "reason" in one), "")


def _features(row: Row) -> dict[str, FeatureValue]:
    return {name: FeatureValue(int64_value=value) for name, value in zip(COLUMNS, row, strict=True)}


def _number(value: FeatureValue) -> int:
    return value.int64_value if value.WhichOneof("kind") == "int64_value" else int(value.double_value)


def _predict(asked: Asked) -> bytes:
    (row,) = asked.rows
    return _bytes(router_pb.PredictRequest(model=MODEL, features=_features(row), version=asked.version))


def _predict_answer(body: bytes) -> tuple[tuple[Result, ...], None]:
    said = router_pb.PredictResponse.FromString(body).prediction
    return (Result(_number(said.prediction), said.model_version),), None


def _rows(asked: Asked) -> bytes:
    rows = [router_pb.PredictRow(features=_features(row)) for row in asked.rows]
    return _bytes(router_pb.PredictRowsRequest(model=MODEL, rows=rows, version=asked.version))


def _rows_answer(body: bytes) -> tuple[tuple[Result, ...], None]:
    return tuple(map(_row_result, router_pb.PredictRowsResponse.FromString(body).results)), None


def _row_result(result: router_pb.PredictRowResult) -> Result:
    if result.WhichOneof("result") == "prediction":
        return Result(_number(result.prediction.prediction), result.prediction.model_version)
    return Result(None, "", _STATUS[result.error.code], _reason(result.error))


def _oip(asked: Asked) -> bytes:
    request = oip_pb.ModelInferRequest(model_name=MODEL, model_version=asked.version, id=str(asked.id))
    request.inputs.add(name="x", datatype="INT64", shape=[len(asked.rows), len(COLUMNS)])
    request.raw_input_contents.append(oracle.packed(asked.rows))
    return _bytes(request)


def _oip_answer(body: bytes) -> tuple[tuple[Result, ...], str]:
    said = oip_pb.ModelInferResponse.FromString(body)
    (raw,) = said.raw_output_contents
    values = [int.from_bytes(raw[at : at + 8], "little", signed=True) for at in range(0, len(raw), 8)]
    return tuple(Result(value, said.model_version) for value in values), said.id


def _json_predict(asked: Asked) -> bytes:
    (row,) = asked.rows
    return json.dumps({"model": MODEL, "features": row._asdict(), "version": asked.version}).encode()


def _json_predict_answer(body: bytes) -> tuple[tuple[Result, ...], None]:
    said = json.loads(body)
    return (Result(int(said["prediction"]), said["model_version"]),), None


def _json_oip(asked: Asked) -> bytes:
    data = [list(row) for row in asked.rows]
    tensor = {"name": "x", "datatype": "INT64", "shape": [len(data), len(COLUMNS)], "data": data}
    return json.dumps({"id": str(asked.id), "inputs": [tensor]}).encode()


def _json_oip_answer(body: bytes) -> tuple[tuple[Result, ...], str]:
    said: dict[str, Any] = json.loads(body)
    (output,) = said["outputs"]
    return tuple(Result(int(value), said["model_version"]) for value in output["data"]), said["id"]


def _json_oip_path(asked: Asked) -> str:
    pinned = f"/versions/{asked.version}" if asked.version else ""
    return f"/v2/models/{MODEL}{pinned}/infer"


def _bytes(message: Message) -> bytes:
    return message.SerializeToString()


_GRPC, _JSON = "application/grpc", "application/json"
_ROUTER: Final = "/interlock.router.v1.RouterService"
PREDICT: Final = Form("predict", _GRPC, lambda _: f"{_ROUTER}/Predict", _predict, _predict_answer)
PREDICT_ROWS: Final = Form("rows", _GRPC, lambda _: f"{_ROUTER}/PredictRows", _rows, _rows_answer, most_rows=5)
OIP: Final = Form("oip", _GRPC, lambda _: "/inference.GRPCInferenceService/ModelInfer", _oip, _oip_answer, most_rows=3)
PREDICT_JSON: Final = Form("predict-json", _JSON, lambda _: "/v1/predict", _json_predict, _json_predict_answer)
OIP_JSON: Final = Form("oip-json", _JSON, _json_oip_path, _json_oip, _json_oip_answer, most_rows=3)
