"""Reading a batch checks every column."""

from collections.abc import Callable

import pytest
from interlock.monitor.v1 import monitor_service_pb2 as pb
from interlock.monitor.v1 import prediction_event_pb2 as event_pb
from interlock.types.v1 import tensor_pb2

from services.common.errors import InvalidArgument
from services.monitor.convert.prediction_batch import batch_from_proto, model_filter_from_proto
from services.monitor.domain.prediction_counts import VariantKey
from tests.fakes.prediction_events import events

Change = Callable[[event_pb.PredictionBatch], object]


def test_a_sound_batch_is_read() -> None:
    batch = batch_from_proto(events(statuses=[0, 0, 14]))
    assert batch is not None
    assert (batch.key, batch.ok_count, batch.error_count) == (VariantKey("fraud", "1", "main"), 2, 1)
    assert batch.prediction_count == 3


def test_a_message_without_a_batch_only_tells_of_drops() -> None:
    assert batch_from_proto(pb.RecordPredictionsRequest(router_id="r", sequence=1, dropped_count=9)) is None


def test_a_failed_prediction_may_lack_version_and_variant() -> None:
    request = events(statuses=[5])
    request.batch.version = request.batch.variant = ""
    batch = batch_from_proto(request)
    assert batch is not None
    assert batch.key == VariantKey("fraud", "", "")


def _add_input(batch: event_pb.PredictionBatch, rows: int) -> None:
    batch.inputs.append(
        tensor_pb2.Tensor(name="x", shape=[rows, 4], data_type=tensor_pb2.DATA_TYPE_FP32, data=bytes(16 * rows))
    )


def _add_times(batch: event_pb.PredictionBatch, count: int) -> None:
    batch.feature_event_times.append(event_pb.FeatureEventTimes(feature="age", event_times_us=[0] * count))


WRONG: list[tuple[str, Change]] = [
    ("batch.prediction_ids", lambda b: setattr(b, "prediction_ids", b"\x00" * 33)),
    ("batch.statuses", lambda b: b.statuses.append(0)),
    ("batch.has_tensors", lambda b: b.ClearField("has_tensors")),
    ("batch.buckets", lambda b: b.buckets.append(1)),
    ("batch.buckets", lambda b: b.buckets.__setitem__(0, 10_001)),
    ("batch.principals", lambda b: b.principals.__setitem__(0, 1)),
    ("batch.degraded", lambda b: b.degraded.append(True)),
    ("batch.cached", lambda b: b.cached.append(True)),
    ("batch.latencies_us", lambda b: b.latencies_us.append(1)),
    ("batch.sampling_weights", lambda b: b.sampling_weights.append(1)),
    ('batch.feature_event_times["age"]', lambda b: _add_times(b, 3)),
    ('batch.missing_features["age"]', lambda b: b.missing_features.add(feature="age", reasons=[1] * 3)),
    ('batch.inputs["x"]', lambda b: _add_input(b, 3)),
    ("batch.model", lambda b: setattr(b, "model", "")),
    ("batch.model", lambda b: setattr(b, "model", "../etc")),
    ("batch.version", lambda b: setattr(b, "version", "1\n")),
    ("batch.environment", lambda b: setattr(b, "environment", "")),
    ("batch.environment", lambda b: setattr(b, "environment", "a\x00b")),
    ("batch.statuses", lambda b: b.statuses.__setitem__(0, 70_000)),
    ("batch.sampling_weights", lambda b: b.sampling_weights.__setitem__(0, 3e38)),
    ("batch.sampling_weights", lambda b: b.sampling_weights.__setitem__(0, float("nan"))),
    ('batch.inputs["none"]', lambda b: b.inputs.add(name="none", data=b"\x00")),
    # Multiplied, they would be a number of millions of digits.
    ('batch.inputs["deep"]', lambda b: b.inputs.add(name="deep", shape=[2] + [1 << 62] * 100_000)),
    ("batch.inputs", lambda b: b.inputs.extend([tensor_pb2.Tensor()] * 100_000)),
    ("batch.entity_keys", lambda b: b.entity_keys.extend([event_pb.EntityKeys()] * 100_000)),
    ("batch.prediction_ids", lambda b: setattr(b, "prediction_ids", bytes(16 * 10_001))),
]


@pytest.mark.parametrize(("field", "change"), WRONG)
def test_a_wrong_column_is_named(field: str, change: Change) -> None:
    request = events(statuses=[0, 0])
    change(request.batch)
    with pytest.raises(InvalidArgument) as caught:
        batch_from_proto(request)
    assert caught.value.reason == "INVALID_BATCH"
    assert [violation.field for violation in caught.value.violations] == [field]


def test_all_wrong_columns_are_listed_at_once() -> None:
    request = events(statuses=[0, 0])
    request.router_id = "x" * 129
    request.batch.model = "a/b"
    request.batch.cached.append(True)
    with pytest.raises(InvalidArgument) as caught:
        batch_from_proto(request)
    assert [v.field for v in caught.value.violations] == ["router_id", "batch.model", "batch.cached"]


def test_tensors_that_fit_pass() -> None:
    request = events(statuses=[0, 0])
    _add_input(request.batch, 2)
    _add_times(request.batch, 2)
    assert batch_from_proto(request) is not None


def test_a_filter_that_is_no_id_is_refused() -> None:
    assert model_filter_from_proto(pb.GetPredictionCountsRequest()) == ""
    with pytest.raises(InvalidArgument, match="model: want 1 to 128"):
        model_filter_from_proto(pb.GetPredictionCountsRequest(model="../x"))
