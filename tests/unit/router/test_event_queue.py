"""Prediction events wait as columns: bounded, the oldest let go first, and readable by the monitor as they were."""

import struct
from dataclasses import replace

import numpy as np
import pytest
import uuid_utils
from interlock.monitor.v1 import monitor_service_pb2 as monitor_pb
from interlock.monitor.v1.prediction_event_pb2 import (
    MISSING_REASON_ABSENT,
    MISSING_REASON_STALE,
    MISSING_REASON_UNSPECIFIED,
    PredictionBatch,
)

from services.common.tensor_limits import UNNAMED_COLUMNS_LIMIT
from services.monitor.convert.prediction_batch import batch_from_proto
from services.monitor.domain.decode import columns_of
from services.monitor.domain.version_info import FeatureInfo, FeatureKind, VersionInfo
from services.router.adapters.monitor_client.event_queue import EventQueue
from services.router.domain.enrichment import FeatureRead, FetchedRow, MissingReason
from services.router.domain.ports import PredictionEvent
from services.router.domain.routing import Assignment, Choice, Deployment, Target, Version
from services.router.domain.signature import FeatureSpec, FeatureType, Signature, TensorSpec
from services.router.domain.tensor import Tensor

NAMED = Signature(
    (TensorSpec("x", "FP32", (-1, 2)),),
    (),
    tuple(FeatureSpec(name=f"f{column}", type=FeatureType.DOUBLE, tensor="x", column=column) for column in range(2)),
)


def nothing_is_lost(rows: int) -> None:
    pytest.fail(f"{rows} predictions were dropped")


def choice_of(version: str = "1", signature: Signature = NAMED) -> Choice:
    target = Target(
        Version(model="m", id=version, signature=signature),
        Deployment(name="d", model="m", version=version, pool="default"),
    )
    return Choice(target, "champion", Assignment.STICKY, 7, 1)


def event(*values: float, version: str = "1", status: int = 0, reads: tuple[FeatureRead, ...] = ()) -> PredictionEvent:
    """An event of one row a value; the row is (value, -value), the answer 10 times the value."""
    rows = len(values)
    pairs = [number for value in values for number in (value, -value)]
    return PredictionEvent(
        choice=choice_of(version),
        ids=tuple(uuid_utils.uuid7() for _ in values),
        buckets=(7,) * rows,
        degraded=(False,) * rows,
        inputs=() if status else (Tensor("x", "FP32", (rows, 2), struct.pack(f"<{2 * rows}f", *pairs)),),
        outputs=()
        if status
        else (Tensor("y", "FP32", (rows, 1), struct.pack(f"<{rows}f", *(10 * value for value in values))),),
        status=status,
        principal=f"user {int(values[0]) % 3}",
        latency_us=int(values[0]) + 1,
        reads=reads,
    )


def values_of(batch: PredictionBatch) -> list[float]:
    """The rows of a batch, after a look at whether its columns belong together."""
    (x,), (y,) = batch.inputs, batch.outputs
    rows = np.frombuffer(x.data, "<f4").reshape(x.shape)
    np.testing.assert_array_equal(np.frombuffer(y.data, "<f4").reshape(y.shape)[:, 0], 10 * rows[:, 0])
    assert [batch.principal_names[index] for index in batch.principals] == [
        f"user {int(row) % 3}" for row in rows[:, 0]
    ]
    assert list(batch.latencies_us) == [int(row) + 1 for row in rows[:, 0]]
    return [float(row) for row in rows[:, 0]]


def drained(queue: EventQueue) -> list[PredictionBatch]:
    return [queue.take().to_batch("production") for _ in range(len(queue))]


def test_events_leave_in_their_order_each_once() -> None:
    queue = EventQueue(10_000, 1 << 24, nothing_is_lost)
    sent = [event(float(value)) for value in range(5000)]
    for one in sent:
        queue.record(one)
    batches = drained(queue)
    assert [value for batch in batches for value in values_of(batch)] == [float(value) for value in range(5000)]
    assert b"".join(batch.prediction_ids for batch in batches) == b"".join(one.ids[0].bytes for one in sent)
    assert max(len(batch.statuses) for batch in batches) <= 2048
    assert queue.filled.is_set()


def test_only_like_events_share_a_batch() -> None:
    queue = EventQueue(10_000, 1 << 20, nothing_is_lost)
    for value in range(10):
        queue.record(event(float(value), version=str(value % 2)))
    queue.record(event(10.0, status=14))
    even, odd, failed = drained(queue)
    assert (even.version, odd.version, failed.version) == ("0", "1", "1")
    assert (values_of(even), values_of(odd)) == ([0.0, 2.0, 4.0, 6.0, 8.0], [1.0, 3.0, 5.0, 7.0, 9.0])
    assert (list(failed.statuses), list(failed.has_tensors), len(failed.inputs)) == ([14], [False], 0)


@pytest.mark.parametrize("limits", [(100, 1 << 20), (10_000, 100 * 268)], ids=["rows", "bytes"])
def test_a_full_queue_lets_the_oldest_go_and_counts_them(limits: tuple[int, int]) -> None:
    lost: list[int] = []
    queue = EventQueue(*limits, lost.append)
    for value in range(1000):
        queue.record(event(float(value), version=str(value % 3)))
    kept = sorted(value for batch in drained(queue) for value in values_of(batch))
    assert len(kept) + sum(lost) == 1000
    assert queue.take_dropped() == sum(lost)
    # The oldest batch goes, which is a quarter of all at most.
    assert 75 <= len(kept) <= 100
    assert kept[-25:] == [float(value) for value in range(975, 1000)]


def test_an_event_of_no_prediction_leaves_no_batch() -> None:
    queue = EventQueue(10, 1 << 20, nothing_is_lost)
    queue.record(replace(event(1.0, status=3), ids=(), buckets=(), degraded=()))
    assert len(queue) == 0


def test_an_event_larger_than_the_queue_is_dropped_and_the_next_one_kept() -> None:
    lost: list[int] = []
    queue = EventQueue(10, 1 << 20, lost.append)
    queue.record(event(*map(float, range(11))))
    queue.record(event(1.0))
    assert lost == [11]
    assert [values_of(batch) for batch in drained(queue)] == [[1.0]]


def test_reads_and_missing_features_stand_in_their_rows() -> None:
    queue = EventQueue(100, 1 << 20, nothing_is_lost)
    fetched = FetchedRow((1.0,), (), (5,), (77,), 99)
    for row, read in enumerate((fetched, None, fetched)):
        one = event(float(row), reads=(FeatureRead({"user": f"u{row}"}, read),))
        one.missing = {0: {"f1": MissingReason.STALE}} if row else {}
        queue.record(one)
    queue.record(event(3.0))
    late = event(4.0, 5.0)
    late.missing = {1: {"f0": MissingReason.ABSENT}}
    queue.record(late)
    with_reads, without = drained(queue)
    assert [(column.entity, list(column.keys)) for column in with_reads.entity_keys] == [("user", ["u0", "u1", "u2"])]
    assert list(with_reads.feature_read_times_us) == [99, 0, 99]
    (stale,) = with_reads.missing_features
    assert (stale.feature, list(stale.reasons)) == (
        "f1",
        [MISSING_REASON_UNSPECIFIED, MISSING_REASON_STALE, MISSING_REASON_STALE],
    )
    assert (len(without.entity_keys), list(without.feature_read_times_us)) == (0, [0, 0, 0])
    (absent,) = without.missing_features
    assert (absent.feature, list(absent.reasons)) == ("f0", [0, 0, MISSING_REASON_ABSENT])


INPUTS = {
    "narrow": (-1, 3),
    "flat": (-1,),
    "wide": (-1, UNNAMED_COLUMNS_LIMIT + 1),
    "widest unnamed": (-1, UNNAMED_COLUMNS_LIMIT),
    "image": (-1, 3, 2, 2),
}


@pytest.mark.parametrize("named", [(), ("narrow",), ("wide", "narrow")], ids=["none", "one", "two"])
def test_the_log_is_the_same_without_the_inputs_that_are_left_out(named: tuple[str, ...]) -> None:
    specs = tuple(TensorSpec(name, "FP32", shape) for name, shape in INPUTS.items())
    features = tuple(FeatureSpec(name=f"{name} 1", type=FeatureType.DOUBLE, tensor=name, column=1) for name in named)
    signature = Signature(specs, (), features)
    info = VersionInfo(
        "m", "1", "", features=tuple(FeatureInfo(f.name, FeatureKind.DOUBLE, f.tensor, f.column) for f in features)
    )
    draws = np.random.default_rng(3)
    one = event(1.0)
    one.choice = choice_of(signature=signature)
    one.inputs = tuple(
        Tensor(spec.name, "FP32", (1, *spec.shape[1:]), draws.normal(size=spec.shape[1:]).astype("<f4").tobytes())
        for spec in specs
    )
    columns = []
    for left_out in (frozenset[str](), signature.unlogged):
        one.inputs = tuple(tensor for tensor in one.inputs if tensor.name not in left_out)
        queue = EventQueue(10, 1 << 20, nothing_is_lost)
        queue.record(one)
        request = monitor_pb.RecordPredictionsRequest(router_id="r", sequence=1, batch=drained(queue)[0])
        raw = batch_from_proto(request)
        assert raw is not None
        columns.append(columns_of(raw, info))
    assert {"image"} <= signature.unlogged < set(INPUTS)
    whole, lean = columns
    assert list(whole.rows) == list(lean.rows) == [0]
    assert whole.features.keys() == lean.features.keys()
    assert len(lean.features) == (len(named) or 3 + 1 + UNNAMED_COLUMNS_LIMIT)
    for name, values in whole.features.items():
        np.testing.assert_array_equal(values, lean.features[name])
