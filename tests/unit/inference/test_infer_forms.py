"""A request that is known by its descriptions is the request that a close look gives."""

import pytest
from inference import grpc_service_pb2 as oip_pb

from services.common.infer_sketch import InferSketch
from services.inference.convert.oip import InferForms, infer_from_proto
from services.inference.domain.tensor import TensorSpec
from services.inference.domain.version import VersionKey, VersionSpec


def version() -> VersionSpec:
    inputs = (TensorSpec("x", "FP32", (-1, 3)), TensorSpec("n", "INT64", (-1, 1)))
    return VersionSpec(VersionKey("m", "1"), (), inputs, (TensorSpec("y", "FP32", (-1, 2)),))


def request(rows: int = 2, filler: bytes = b"\0") -> oip_pb.ModelInferRequest:
    made = oip_pb.ModelInferRequest(model_name="m", id="7", raw_input_contents=[filler * 12 * rows, filler * 8 * rows])
    made.inputs.add(name="x", datatype="FP32", shape=[rows, 3])
    made.inputs.add(name="n", datatype="INT64", shape=[rows, 1])
    return made


def sketch(made: oip_pb.ModelInferRequest) -> object:
    return InferSketch.FromString(made.SerializeToString())


def test_what_is_known_is_read_as_by_a_close_look() -> None:
    forms, spec = InferForms(), version()
    assert forms.request(sketch(request()), spec) is None
    forms.learn(sketch(request()), spec, request())
    again = request(filler=b"\x01")
    assert forms.request(sketch(again), spec) == infer_from_proto(again, spec)
    assert forms.request(sketch(request(rows=3)), spec) is None


def test_another_version_under_the_same_name_is_not_known() -> None:
    forms, spec = InferForms(), version()
    forms.learn(sketch(request()), spec, request())
    assert forms.request(sketch(request()), version()) is None


@pytest.mark.parametrize(
    "change", ["short", "more", "fewer", "parameter", "output", "tensor parameter", "contents", "swapped"]
)
def test_what_differs_is_looked_at_closely(change: str) -> None:
    forms, spec, made = InferForms(), version(), request()
    forms.learn(sketch(request()), spec, request())
    if change == "short":
        made.raw_input_contents[1] = b"\0"
    elif change == "more":
        made.raw_input_contents.append(b"")
    elif change == "fewer":
        del made.raw_input_contents[1]
    elif change == "parameter":
        made.parameters["timeout"].int64_param = 5
    elif change == "output":
        made.outputs.add(name="y")
    elif change == "tensor parameter":
        made.inputs[0].parameters["shared_memory_region"].string_param = "r"
    elif change == "contents":
        made.inputs[0].contents.fp32_contents.append(1.0)
    else:
        made.inputs.reverse()
    assert forms.request(sketch(made), spec) is None
    # What is not plain is not learned either.
    forms.learn(sketch(made), spec, made)
    assert forms.request(sketch(made), spec) is None
