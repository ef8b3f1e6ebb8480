"""Requests read without their parts, and answers put together from bytes."""

import pytest
from inference import grpc_service_pb2 as oip_pb

from services.common.infer_sketch import InferSketch, answer_tail


def test_a_sketch_has_every_field_of_the_request() -> None:
    fields = oip_pb.ModelInferRequest.DESCRIPTOR.fields
    assert {(field.name, field.number) for field in InferSketch.DESCRIPTOR.fields} == {
        (field.name, field.number) for field in fields
    }
    request = oip_pb.ModelInferRequest(model_name="m", model_version="3", id="\u00e9", raw_input_contents=[b"a", b""])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 30])
    request.parameters["user_id"].string_param = "u"
    sketch = InferSketch.FromString(request.SerializeToString())
    assert (sketch.model_name, sketch.model_version, sketch.id) == ("m", "3", "\u00e9")
    assert list(sketch.inputs) == [request.inputs[0].SerializeToString()]
    assert list(sketch.raw_input_contents) == [b"a", b""]
    assert len(sketch.parameters) == 1


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 16_383, 16_384, 3_000_000])
def test_a_tail_is_what_protobuf_writes(size: int) -> None:
    for ident, contents in (("", [bytes(size)]), ("i" * min(size, 500), [b"", b"\x01" * size])):
        wanted = oip_pb.ModelInferResponse(id=ident, raw_output_contents=contents)
        assert answer_tail(ident, contents) == wanted.SerializeToString()
