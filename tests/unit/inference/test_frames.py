"""Frames, row borders and typed contents: what goes in comes out, and what is broken is refused."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.adapters.load_plan import plain_text
from services.inference.domain.frame import (
    ALIGNMENT_BYTES,
    HEADER,
    Failure,
    Frame,
    FrameTensor,
    Kind,
    body_size_bytes,
    decode_frame,
    encode_frame,
    encode_shared,
    failed_meta,
    parse_failed_meta,
    parse_run_meta,
    run_meta,
    tensor_bytes,
)
from services.inference.domain.instance import Pauses
from services.inference.domain.shared_memory import Segment, create_descriptors
from services.inference.domain.tensor import BrokenTensor, bytes_row_borders, element_count, row_borders
from services.inference.domain.version import warm_sizes

TENSORS = st.lists(
    st.tuples(st.sampled_from(["FP32", "BYTES", "BF16"]), st.lists(st.binary(max_size=200), max_size=4)), max_size=5
)


@given(st.binary(max_size=100), TENSORS, st.integers(0, 2**64 - 1))
def test_a_frame_comes_back_as_it_went_and_its_tensors_are_aligned(
    meta: bytes, tensors: list[tuple[str, list[bytes]]], ident: int
) -> None:
    sent = [FrameTensor(kind, (len(parts), 3), parts) for kind, parts in tensors]
    wire = b"".join(encode_frame(Frame(Kind.RUN, ident, meta, sent)))
    header, body = wire[: HEADER.size], memoryview(wire)[HEADER.size :]
    assert body_size_bytes(header) == len(body)
    frame = decode_frame(header, body)
    assert (frame.kind, frame.ident, frame.meta) == (Kind.RUN, ident, meta)
    for before, after in zip(sent, frame.tensors, strict=True):
        data = b"".join(before.parts)
        assert (after.datatype, after.shape, bytes(after.parts[0])) == (before.datatype, before.shape, data)
        assert any(body[at : at + len(data)] == data for at in range(0, len(body), ALIGNMENT_BYTES))


@given(TENSORS)
def test_a_frame_whose_tensors_lie_in_shared_memory_comes_back_as_it_went(
    tensors: list[tuple[str, list[bytes]]],
) -> None:
    sent = [FrameTensor(kind, (len(parts), 3), parts) for kind, parts in tensors]
    memory = memoryview(bytearray(b"\xff" * tensor_bytes(sent)))
    wire = encode_shared(Frame(Kind.RUN, 7, b"meta", sent), memory)
    header, body = wire[: HEADER.size], memoryview(wire)[HEADER.size :]
    assert body_size_bytes(header) == len(body)
    frame = decode_frame(header, body, lambda size: memory[:size])
    assert (frame.ident, frame.meta) == (7, b"meta")
    assert [bytes(tensor.parts[0]) for tensor in frame.tensors] == [b"".join(parts) for _, parts in tensors]
    with pytest.raises(ValueError, match="no"):
        decode_frame(header, body)


def test_a_segment_grows_and_both_sides_see_the_same() -> None:
    (descriptor,) = create_descriptors(1)
    try:
        ours, theirs = Segment(descriptor), Segment(descriptor)
        for size in (10_000, 100, 1_000_000):
            data = bytes(range(250)) * (size // 250)
            ours.room(len(data))[:] = data
            assert theirs.view(len(data)) == data
    finally:
        os.close(descriptor)


@given(st.binary(max_size=300))
def test_bytes_that_are_no_frame_are_refused(noise: bytes) -> None:
    header = HEADER.pack(len(noise), Kind.RUN, 1, len(noise), 3, 0)
    with pytest.raises(ValueError, match="not a frame"):
        decode_frame(header, memoryview(noise))


def test_metas_come_back() -> None:
    assert parse_run_meta(run_meta((2, 0), "00-ab-cd-01")) == ((2, 0), "00-ab-cd-01")
    assert parse_failed_meta(failed_meta(Failure.MODEL_REFUSED, "größer")) == (Failure.MODEL_REFUSED, "größer")


@given(st.lists(st.lists(st.binary(max_size=9), min_size=2, max_size=2), min_size=1, max_size=9))
def test_rows_of_texts_are_found_by_walking(rows: list[list[bytes]]) -> None:
    joined = [b"".join(len(cell).to_bytes(4, "little") + cell for cell in cells) for cells in rows]
    borders = bytes_row_borders(b"".join(joined), len(rows), 2)
    data = b"".join(joined)
    assert [data[borders[n] : borders[n + 1]] for n in range(len(rows))] == joined
    for broken in (data[:-1], data + b"\x00"):
        with pytest.raises(BrokenTensor):
            bytes_row_borders(broken, len(rows), 2)


def test_rows_of_fixed_size_are_counted() -> None:
    assert list(row_borders("FP32", (3, 2), bytes(24))) == [0, 8, 16, 24]
    assert list(row_borders("FP32", (3, 0), b"")) == [0, 0, 0, 0]
    with pytest.raises(BrokenTensor, match=r"want 24 bytes for shape \[3, 2\] of FP32, got 23"):
        row_borders("FP32", (3, 2), bytes(23))


def test_a_product_that_would_wrap_around_stops_at_the_limit() -> None:
    assert element_count((2**31, 2**33), 1000) == 1001
    assert element_count((2**62, 2**62, 0), 1000) == 0
    assert element_count((10, 100), 1000) == 1000


@pytest.mark.parametrize(("most", "sizes"), [(1, (1,)), (8, (1, 2, 4, 8)), (10, (1, 2, 4, 8, 10))])
def test_the_sizes_to_warm(most: int, sizes: tuple[int, ...]) -> None:
    assert warm_sizes(most) == sizes


def test_pauses_grow_and_the_first_restart_is_at_once() -> None:
    pauses = Pauses(load_first_s=1, load_longest_s=5, restart_first_s=0.5, restart_longest_s=2)
    assert [pauses.after_failures(n) for n in (1, 2, 3, 4, 999)] == [1, 2, 4, 5, 5]
    assert [pauses.after_deaths(n) for n in (1, 2, 3, 4, 999)] == [0, 0.5, 1, 2, 2]


def test_a_librarys_words_lose_paths_and_types() -> None:
    error = RuntimeError("[ONNXRuntimeError] : 1 : FAIL : at /srv/x/model.onnx in onnx::Foo\nline 2")
    assert plain_text(error) == "at ... in ... line 2"
