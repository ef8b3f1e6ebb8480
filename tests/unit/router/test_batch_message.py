"""The messages of the hop: a batch put together from pieces is what the contract describes; results are taken apart."""

import pytest
from interlock.inference.v1.inference_service_pb2 import (
    CRITICALITY_CRITICAL,
    CoalescedInferRequest,
    InferFailure,
    InferResults,
)
from interlock.types.v1.tensor_pb2 import DATA_TYPE_BYTES, DATA_TYPE_FP32, DATA_TYPE_UINT8
from interlock.types.v1.tensor_pb2 import Tensor as WireTensor

from services.common.criticality import Criticality
from services.common.errors import ResourceExhausted, to_status
from services.common.wire_pieces import varint
from services.router.adapters.inference_client.message import Item, batch_message, cancel_message, split_results
from services.router.domain.ports import Job
from services.router.domain.tensor import Tensor


class Nobody:
    """Waits for no outcome."""

    def done(self) -> bool:
        """Nobody waits."""
        return True

    def set_result(self, result: object, /) -> None:
        """Take nothing."""

    def set_exception(self, exception: Exception, /) -> None:
        """Take nothing."""


def item(ident: int, rows: int, values: bytes) -> Item:
    inputs = (
        Tensor("image", "FP32", (rows, 64, 64), values * rows),
        Tensor("words", "BYTES", (rows, 1), b"\x01\x00\x00\x00a" * rows),
        Tensor("nothing", "UINT8", (rows, 0), b""),
    )
    return Item(
        id=ident,
        job=Job(inputs, rows, ("y", "z")),
        deadline=101.0 + ident,
        traceparent="00-ab-cd-01" if ident == 2 else "",
        request_id=f"r{ident}",
        tenant="local",
        criticality=Criticality.CRITICAL if ident == 1 else Criticality.DEFAULT,
        attempt=1,
        outcome=Nobody(),
    )


def test_the_pieces_make_the_message_and_values_are_not_copied() -> None:
    images = [bytes([number]) * 64 * 64 * 4 for number in (7, 8, 9)]
    items = [item(1, 1, images[0]), item(2, 2, images[1]), item(3, 1, images[2])]
    pieces = batch_message(items, 100.0)
    assert any(piece is items[1].job.inputs[0].data for piece in pieces)
    message = CoalescedInferRequest.FromString(b"".join(pieces))
    assert message.WhichOneof("message") == "batch"
    batch = message.batch
    assert (list(batch.ids), list(batch.rows), list(batch.outputs)) == ([1, 2, 3], [1, 2, 1], ["y", "z"])
    assert list(batch.timeouts_us) == [1_995_000, 2_995_000, 3_995_000]
    assert batch.criticalities[0] == CRITICALITY_CRITICAL
    assert len(batch.criticalities) == 3
    assert (list(batch.attempts), list(batch.traceparents)) == ([], ["", "00-ab-cd-01", ""])
    assert (list(batch.request_ids), list(batch.tenants)) == (["r1", "r2", "r3"], ["local"] * 3)
    assert list(batch.tensors) == [
        WireTensor(
            name="image",
            data_type=DATA_TYPE_FP32,
            shape=(4, 64, 64),
            data=images[0] + 2 * images[1] + images[2],
        ),
        WireTensor(name="words", data_type=DATA_TYPE_BYTES, shape=(4, 1), data=b"\x01\x00\x00\x00a" * 4),
        WireTensor(name="nothing", data_type=DATA_TYPE_UINT8, shape=(4, 0)),
    ]


def test_the_message_that_takes_back_names_the_ids() -> None:
    message = CoalescedInferRequest.FromString(b"".join(cancel_message([3, 300])))
    assert list(message.cancel.ids) == [3, 300]


@pytest.mark.parametrize("size", [0, 1, 0x7F, 0x80, 0x3FFF, 0x4000, 0x1FFFFF, 0x200000])
def test_lengths_are_written_as_protobuf_writes_them(size: int) -> None:
    assert (b"\x22" + varint(size) if size else b"") == WireTensor(data=bytes(size)).SerializeToString()[
        : 1 + len(varint(size))
    ]


def test_who_is_told_the_same_has_an_error_of_his_own() -> None:
    status = to_status(
        ResourceExhausted("full", reason="QUEUE_FULL", retry_after_s=0.25, metadata={"wait_ms": "7"}), ""
    )
    failure = InferFailure(id=3, error=status, further_ids=[5, 4])
    outcomes = split_results(InferResults(failures=[failure]))
    errors = {ident: error for ident, _, error in outcomes if isinstance(error, ResourceExhausted)}
    assert list(errors) == [3, 5, 4]
    assert len(set(map(id, errors.values()))) == 3
    told = {(str(error), error.reason, error.retry_after_s, *error.metadata.items()) for error in errors.values()}
    assert told == {("full", "QUEUE_FULL", 0.25, ("wait_ms", "7"))}
