"""Bytes that are hardly a request, given to what reads the requests of the hot methods.

Each target takes the body of a message as it comes off the wire, and goes as far as the service does before anything
waits or is sent. Whatever the bytes are, it accepts them or refuses them as the caller's mistake, in words that hold no
names of ours; anything else that is raised is a bug. `make test` gives each a few thousand mutations of good messages,
`make soak` a million each, guided by coverage (`fuzz_soak.py`).
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import grpc
from google.protobuf.message import Message
from inference import grpc_service_pb2 as oip_pb
from interlock.inference.v1 import inference_service_pb2 as inference_pb
from interlock.router.v1 import router_service_pb2 as router_pb
from interlock.types.v1.tensor_pb2 import DATA_TYPE_BYTES, DATA_TYPE_FP32, DATA_TYPE_INT64

from services.common.chain import ByteBudget, parse_message
from services.common.errors import ServiceError, to_status
from services.common.infer_sketch import InferSketch
from services.common.shared_regions import SharedRegions
from services.common.shared_tensors import SharedTensors
from services.common.wire_pieces import varint
from services.inference.convert import oip as inference_oip
from services.inference.convert.coalesced import open_from_proto, payload_from_proto, requests_from_proto
from services.inference.domain.tensor import TensorSpec
from services.inference.domain.version import VersionKey, VersionSpec
from services.router.convert import oip as router_oip
from services.router.convert import streams
from services.router.convert.oip_json import infer_from_http, infer_from_raw
from services.router.convert.predict_json import predict_from_json, rows_from_json
from services.router.convert.request import predict_from_proto, rows_from_proto
from services.router.convert.signature import signature_from_proto
from services.router.domain.plan import compile_plan
from services.router.domain.prediction import TensorRequest
from services.router.domain.row import Row
from services.router.domain.tensor import DATA_TYPES
from services.router.domain.tensor_check import check_inputs, check_outputs
from tests.fakes.router_models import (
    FLIGHT,
    MIRROR,
    PAIR,
    flight_signature,
    mirror_signature,
    pair_signature,
)
from tests.fakes.router_world import README

_CODES: Final = {
    grpc.StatusCode.INVALID_ARGUMENT,
    # An output, or a region of shared memory, that is not there.
    grpc.StatusCode.NOT_FOUND,
    # Extensions that are off or not offered.
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
}
_NAMES_OF_OURS: Final = re.compile(r"_pb2|<class|Traceback|0x[0-9a-f]{6,}|services\.|object at")
_INTERESTING: Final = (0, 1, 0x7F, 0x80, 0xFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


class Bug(AssertionError):
    """What was raised is no answer for a caller."""


@dataclass(frozen=True)
class Target:
    """What reads one message, and good messages to begin with."""

    read: Callable[[bytes], object]
    good: Sequence[bytes]


def ask(target: Target, body: bytes) -> bool:
    """Give it to the target and return whether it is accepted; raises Bug for an error that no caller should get."""
    try:
        target.read(body)
    except ServiceError as error:
        status = to_status(error, "request")
        status.SerializeToString()
        if error.code not in _CODES:
            raise Bug(f"{error.code.name}: {error}") from error
        if _NAMES_OF_OURS.search(status.message):
            raise Bug(status.message) from error
        return False
    return True


def mutated(draw: random.Random, good: Sequence[bytes]) -> bytes:
    """Return one of the good messages with a few bytes changed, as a broken sender might."""
    body = bytearray(draw.choice(good))
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        at = draw.randint(0, len(body))
        end = min(len(body), at + draw.choice((1, 2, 8, 64)))
        body[at:end] = draw.choice(_CHANGES)(draw, bytes(body[at:end]), draw.choice(good))
    return bytes(body)


def _slice(draw: random.Random, other: bytes) -> bytes:
    start = draw.randint(0, len(other))
    return other[start : start + draw.choice((1, 8, 64, len(other)))]


_CHANGES: Final[Sequence[Callable[[random.Random, bytes, bytes], bytes]]] = (
    lambda draw, part, _: bytes(byte ^ 1 << draw.randrange(8) for byte in part[:1]) + part[1:],
    lambda draw, part, _: bytes(draw.choice(_INTERESTING[:5]) for _ in part[:1]) + part[1:],
    lambda draw, part, _: draw.randbytes(draw.choice((1, 2, 4, 16))) + part,
    lambda draw, _, __: varint(draw.choice(_INTERESTING)),
    lambda _, __, ___: b"",
    lambda draw, part, _: part * draw.choice((2, 3, 50)),
    lambda draw, _, other: _slice(draw, other),
    lambda draw, part, other: part + _slice(draw, other),
)


class _Router:
    """What the router reads, for the models of its tests."""

    def __init__(self) -> None:
        self.signatures = {name: signature_from_proto(proto) for name, proto in _SIGNATURES.items()}
        self._plans = {name: compile_plan(self.signatures[name]) for name in (FLIGHT, PAIR)}
        self._forms = router_oip.InferForms()
        self._regions = SharedRegions(0, 1 << 20, ByteBudget(1 << 20))

    def predict(self, body: bytes) -> None:
        found = predict_from_proto(parse_message(router_pb.PredictRequest, body))
        self._encode(found.model, [found.row])

    def predict_rows(self, body: bytes) -> None:
        found = rows_from_proto(parse_message(router_pb.PredictRowsRequest, body))
        self._encode(found.model, found.rows)

    def predict_stream(self, body: bytes) -> None:
        request = parse_message(router_pb.PredictStreamRequest, body)
        if request.WhichOneof("message") == "open":
            streams.open_from_proto(request)
        else:
            streams.item_timeout_s(request)
            self._encode(FLIGHT, [streams.item_from_proto(request)])

    def predict_rows_stream(self, body: bytes) -> None:
        request = parse_message(router_pb.PredictRowsStreamRequest, body)
        streams.check_rows_stream(request)
        rows = streams.RowsPart(0, request.rows).read()
        self._encode(request.model, [row for row in rows if isinstance(row, Row)])

    def model_infer(self, body: bytes) -> None:
        sketch = parse_message(InferSketch, body)
        known = self._forms.request(sketch)
        request = parse_message(oip_pb.ModelInferRequest, body)
        found = router_oip.infer_from_proto(request)
        if known is not None and known != found:
            raise Bug(f"at first sight {known}, looked at closely {found}")
        self._check(found)
        self._forms.learn(sketch, request)

    def predict_json(self, body: bytes) -> None:
        found = predict_from_json(body)
        self._encode(found.model, [found.row])

    def predict_rows_json(self, body: bytes) -> None:
        found = rows_from_json(body)
        self._encode(found.model, found.rows)

    def infer_json(self, body: bytes) -> None:
        # The length of the header comes in a header of HTTP; here it is in the first two bytes.
        length = min(int.from_bytes(body[:2], "little"), len(body) - 2)
        with SharedTensors(self._regions) as shared:
            self._check(infer_from_http(PAIR, "", body[2:], length, shared).request)

    def infer_raw(self, body: bytes) -> None:
        self._check(infer_from_raw(PAIR, "", body, self.signatures[PAIR]).request)

    def _encode(self, model: str, rows: Sequence[Row]) -> None:
        plan = self._plans.get(model, self._plans[FLIGHT])
        plan.tensors([plan.encode(row.features) for row in rows])

    def _check(self, found: TensorRequest) -> None:
        signature = self.signatures.get(found.model, self.signatures[MIRROR])
        check_outputs(signature, found.outputs, found.is_typed)
        check_inputs(signature, found.inputs)


class _Inference:
    """What a replica reads, for a version with an input of each kind: fixed, of variable length, and texts."""

    def __init__(self) -> None:
        inputs = (
            TensorSpec("x", "FP32", (-1, 2)),
            TensorSpec("n", "INT64", (-1, -1)),
            TensorSpec("word", "BYTES", (-1, 1)),
        )
        outputs = TensorSpec("y", "FP32", (-1, 1)), TensorSpec("z", "BYTES", (-1, 1))
        self._mixed = VersionSpec(VersionKey("mixed", "1"), (), inputs, outputs)
        self._plain = VersionSpec(VersionKey("plain", "1"), (), inputs[:1], outputs[:1])
        self._forms = inference_oip.InferForms()

    def model_infer(self, body: bytes) -> None:
        sketch = parse_message(InferSketch, body)
        version = self._plain if sketch.model_name == "plain" else self._mixed
        known = self._forms.request(sketch, version)
        request = parse_message(oip_pb.ModelInferRequest, body)
        found = inference_oip.infer_from_proto(request, version)
        if known is not None and known != found:
            raise Bug(f"at first sight {known}, looked at closely {found}")
        self._forms.learn(sketch, version, request)

    def coalesced(self, body: bytes) -> None:
        request = parse_message(inference_pb.CoalescedInferRequest, body)
        if request.WhichOneof("message") != "batch":
            list(request.cancel.ids)
            open_from_proto(request)
            return
        asked = requests_from_proto(request.batch, 0.0)
        for version in (self._plain, self._mixed):
            if len(request.batch.tensors) == len(version.inputs):
                payload = payload_from_proto(request.batch, sum(asked.rows), version)
                after = 0
                for rows in asked.rows:
                    payload.rows(after, rows)
                    after += rows
                return
        payload_from_proto(request.batch, sum(asked.rows), self._plain)


def _messages(*messages: Message) -> list[bytes]:
    return [message.SerializeToString() for message in messages]


def _good_row() -> router_pb.PredictRow:
    row = router_pb.PredictRow(user_id="u-42", entities={"carrier": "B6"})
    row.as_of_time.FromJsonString("2026-01-01T00:00:00.5Z")
    for name, value in README["features"].items():
        if isinstance(value, str):
            row.features[name].string_value = value
        elif name == "distance":
            row.features[name].double_value = value
        else:
            row.features[name].int64_value = value
    return row


def _odd_row() -> router_pb.PredictRow:
    row = _good_row()
    row.features["gate"].list_value.values.add().bool_value = True
    row.features["month"].null_value = 0  # type: ignore[assignment]
    return row


def _plain_row() -> router_pb.PredictRow:
    row = router_pb.PredictRow()
    for name in ("a", "b"):
        row.features[name].double_value = 1.5
    return row


def _predict(model: str, row: router_pb.PredictRow) -> router_pb.PredictRequest:
    found = router_pb.PredictRequest(
        model=model,
        version="1",
        features=row.features,
        entities=row.entities,
        user_id=row.user_id,
        include_probabilities=True,
    )
    if row.HasField("as_of_time"):
        found.as_of_time.CopyFrom(row.as_of_time)
    return found


def _infer(model: str, *, raw: bool = True) -> oip_pb.ModelInferRequest:
    request = oip_pb.ModelInferRequest(model_name=model, model_version="1", id="7")
    for tensor in signature_from_proto(_SIGNATURES[model]).inputs:
        columns = tensor.shape[1]
        made = request.inputs.add(name=tensor.name, datatype=tensor.data_type, shape=[1, columns])
        if not raw:
            made.contents.fp64_contents.extend([1.5] * columns)
        elif tensor.data_type == "BYTES":
            request.raw_input_contents.append(b"\x02\x00\x00\x00B6" * columns)
        else:
            request.raw_input_contents.append(bytes(DATA_TYPES[tensor.data_type].size_bytes * columns))
    return request


_SIGNATURES: Final = {FLIGHT: flight_signature(), PAIR: pair_signature(), MIRROR: mirror_signature()}


def _unusual_infer() -> oip_pb.ModelInferRequest:
    request = _infer(PAIR)
    request.parameters["user_id"].string_param = "u"
    request.parameters["timeout"].int64_param = 5_000
    request.outputs.add(name="y").parameters["classification"].int64_param = 1
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"
    return request


def _own_infer(model: str) -> oip_pb.ModelInferRequest:
    request = oip_pb.ModelInferRequest(model_name=model, model_version="1", raw_input_contents=[bytes(16)])
    request.inputs.add(name="x", datatype="FP32", shape=[2, 2])
    if model == "mixed":
        request.inputs.add(name="n", datatype="INT64", shape=[2, 3])
        request.inputs.add(name="word", datatype="BYTES", shape=[2, 1])
        request.raw_input_contents.extend([bytes(48), b"\x02\x00\x00\x00B6\x00\x00\x00\x00"])
    return request


_LEVELS: Final = (inference_pb.CRITICALITY_CRITICAL, inference_pb.CRITICALITY_SHEDDABLE)


def _batch(model: str) -> inference_pb.CoalescedInferRequest:
    batch = inference_pb.InferBatch(
        ids=[1, 2], rows=[1, 1], timeouts_us=[500_000, 1], criticalities=_LEVELS, request_ids=["a", "b"],
        traceparents=["00-" + "1" * 32 + "-" + "2" * 16 + "-01", ""],
    )  # fmt: skip
    kinds = {"FP32": DATA_TYPE_FP32, "INT64": DATA_TYPE_INT64, "BYTES": DATA_TYPE_BYTES}
    request = _own_infer(model)
    for tensor, data in zip(request.inputs, request.raw_input_contents, strict=True):
        batch.tensors.add(name=tensor.name, data_type=kinds[tensor.datatype], shape=tensor.shape, data=data)
    return inference_pb.CoalescedInferRequest(batch=batch)


def _coalesced() -> list[bytes]:
    opening = inference_pb.InferOpen(model="plain", version="1", client_id="router-1")
    outputs = _batch("mixed")
    outputs.batch.outputs.append("z")
    return _messages(
        _batch("plain"), _batch("mixed"), outputs,
        inference_pb.CoalescedInferRequest(open=opening),
        inference_pb.CoalescedInferRequest(cancel=inference_pb.InferCancel(ids=[1, 2])),
    )  # fmt: skip


def _json_tensors() -> list[bytes]:
    plain = b'{"id": "7", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [[1.5, -2e3]]}], "outputs": [{"name": "y", "parameters": {"binary_data": true}}], "parameters": {"user_id": "u"}}'
    mixed = b'{"inputs": [{"name": "in_BYTES", "shape": [1, 2], "datatype": "BYTES", "data": ["a", "\\u00e4"]}, {"name": "in_FP32", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}]}'
    return [len(text).to_bytes(2, "little") + text + tail for text, tail in ((plain, b""), (mixed, bytes(8)))]


_ROW: Final = b'{"features": {"carrier": "B6", "origin": "JFK", "dest": "LAX", "sched_dep_hour": 17, "month": 9, "weekday": 5, "distance": 2475.5}, "entities": {"carrier": "B6"}, "user_id": "u-42", "as_of_time": "2026-01-01T00:00:00Z"'


def targets() -> Mapping[str, Target]:
    """Return what reads each message."""
    router, inference = _Router(), _Inference()
    row, odd, plain = _good_row(), _odd_row(), _plain_row()
    opening = router_pb.PredictStreamOpen(model=FLIGHT, version="1", max_outstanding_items=8)
    item = router_pb.PredictStreamItem(id=1, row=row, timeout_ms=100)
    return {
        "Predict": Target(router.predict, _messages(_predict(FLIGHT, row), _predict(FLIGHT, odd), _predict(PAIR, plain))),
        "PredictRows": Target(
            router.predict_rows,
            _messages(
                router_pb.PredictRowsRequest(model=FLIGHT, rows=[row, row]),
                router_pb.PredictRowsRequest(model=FLIGHT, rows=[row, odd], version="1"),
            ),
        ),
        "PredictStream": Target(
            router.predict_stream,
            _messages(router_pb.PredictStreamRequest(open=opening), router_pb.PredictStreamRequest(item=item)),
        ),
        "PredictRowsStream": Target(
            router.predict_rows_stream, _messages(router_pb.PredictRowsStreamRequest(model=PAIR, rows=[plain] * 3))
        ),
        "ModelInfer at the router": Target(
            router.model_infer,
            _messages(
                _infer(PAIR), _infer(PAIR, raw=False), _unusual_infer(),
                _infer(FLIGHT), _infer(MIRROR),
            ),
        ),
        "ModelInfer at inference": Target(
            inference.model_infer, _messages(_own_infer("plain"), _own_infer("mixed"), _unusual_infer())
        ),
        "CoalescedInfer": Target(inference.coalesced, _coalesced()),
        "POST /v1/predict": Target(router.predict_json, [b'{"model": "flight-delay", ' + _ROW[1:] + b"}"]),
        "POST /v1/predict_rows": Target(router.predict_rows_json, [b'{"model": "flight-delay", "rows": [' + _ROW + b"}]}"]),
        "POST /v2 infer": Target(router.infer_json, _json_tensors()),
        "POST /v2 infer, bytes alone": Target(router.infer_raw, [bytes(16), bytes(32)]),
    }  # fmt: skip
