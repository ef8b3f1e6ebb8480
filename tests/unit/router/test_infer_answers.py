"""Answers in wire form say what the message says, and known requests what a close look says."""

import struct

import pytest
import uuid_utils
from inference import grpc_service_pb2 as oip_pb

from services.common.infer_sketch import InferSketch
from services.router.convert.oip import InferAnswers, InferForms, infer_from_proto, infer_to_proto
from services.router.domain.prediction import TensorAnswer
from services.router.domain.routing import Assignment, Choice, Deployment, Target, Version
from services.router.domain.signature import Signature
from services.router.domain.tensor import Tensor

TARGET = Target(
    Version(model="m", id="3", signature=Signature((), ())), Deployment(name="d", model="m", version="3", pool="p")
)


def answer(rows: int, value: float, variant: str = "champion", epoch: int = 7) -> TensorAnswer:
    outputs = (
        Tensor("y", "FP32", (rows, 1), struct.pack("<f", value) * rows),
        Tensor("word", "BYTES", (rows, 1), b"\x02\x00\x00\x00ok" * rows),
    )
    ids = tuple(uuid_utils.uuid7() for _ in range(rows))
    return TensorAnswer(outputs, Choice(TARGET, variant, Assignment.STICKY, 5, epoch), ids)


@pytest.mark.parametrize("rows", [1, 2])
def test_wire_form_and_message_are_the_same(rows: int) -> None:
    answers = InferAnswers()
    # Twice each: the first of its kind teaches, the second uses what was learned.
    for number, given in enumerate(
        [answer(rows, 1.5), answer(rows, -2.0), answer(rows, 0.0, "other"), answer(rows, 1, epoch=8)]
    ):
        for request_id in ("", f"request-{number}"):
            encoded = oip_pb.ModelInferResponse.FromString(answers.encode(given, request_id))
            assert encoded == infer_to_proto(given, request_id)


def request(filler: bytes = b"\0") -> oip_pb.ModelInferRequest:
    made = oip_pb.ModelInferRequest(model_name="m", model_version="1", id="7", raw_input_contents=[filler * 12])
    made.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    return made


def test_a_request_that_is_known_is_read_as_by_a_close_look() -> None:
    forms = InferForms()
    assert forms.request(_sketch(request())) is None
    forms.learn(_sketch(request()), request())
    again = request(b"\x01")
    assert forms.request(_sketch(again)) == infer_from_proto(again)
    again.parameters["user_id"].string_param = "u"
    assert forms.request(_sketch(again)) is None
    again = request()
    again.raw_input_contents.append(b"")
    assert forms.request(_sketch(again)) is None


def _sketch(made: oip_pb.ModelInferRequest) -> object:
    return InferSketch.FromString(made.SerializeToString())
