"""Messages of many tiny parts are refused before anything is made of them; what is not, costs little."""

import random
import tracemalloc

import pytest
from inference import grpc_service_pb2 as oip_pb

from services.common.chain import parse_message
from services.common.errors import InvalidArgument
from services.common.infer_sketch import InferSketch, parse_closely
from services.common.part_count import PART_LIMIT, check_part_count

EMPTY_INPUT = b"\x2a\x00"
TENSORS = oip_pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(300_000), b""])
TENSORS.inputs.add(name="x", datatype="FP32", shape=[1] * 300)


class NeverParsed:
    """Stands for a message whose parsing would cost memory."""

    @staticmethod
    def FromString(payload: bytes) -> None:
        raise AssertionError("it was parsed")


def test_too_many_parts_are_refused_before_they_are_parsed() -> None:
    with pytest.raises(InvalidArgument, match=f"at most {PART_LIMIT} elements"):
        parse_message(NeverParsed, EMPTY_INPUT * (PART_LIMIT + 1))  # type: ignore[arg-type]
    check_part_count(EMPTY_INPUT * PART_LIMIT)


@pytest.mark.parametrize(
    "part", [EMPTY_INPUT, b"\x08\x01", b"\x0d\0\0\0\0", b"\x09" + bytes(8), b"\xa2\x06\x00", b"\x22\x83\x00abc"]
)
def test_parts_of_any_kind_are_counted_without_being_kept(part: bytes) -> None:
    payload = part * 50_000
    tracemalloc.start()
    try:
        with pytest.raises(InvalidArgument):
            check_part_count(payload, limit=1_000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 16, "what was allocated at most, in bytes"
    finally:
        tracemalloc.stop()
    check_part_count(part * 50_000, limit=50_000)


def test_an_input_of_many_parts_is_refused_by_its_sketch() -> None:
    parameter = b"\x22\x06\x0a\x04abcd"
    size = len(parameter) * 20_000
    payload = b"\x2a" + bytes((size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14)) + parameter * 20_000
    sketch = parse_message(InferSketch, payload)
    with pytest.raises(InvalidArgument, match="at most 1024 elements"):
        parse_closely(sketch, payload)


def test_long_parts_count_once_and_are_stepped_over() -> None:
    payload = TENSORS.SerializeToString()
    check_part_count(payload, limit=4)
    with pytest.raises(InvalidArgument):
        check_part_count(payload, limit=3)
    assert parse_closely(parse_message(InferSketch, payload), payload) == TENSORS


def test_what_is_no_message_is_left_to_the_parser() -> None:
    draw = random.Random(1)
    for payload in (b"\xff" * 100_000, b"\x2a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" * 10_000, b"\x2b" * 100_000):
        check_part_count(payload)
    for _ in range(200):
        check_part_count(draw.randbytes(70_000))
