"""Prediction events as a router would send them."""

from collections.abc import Sequence

import uuid_utils
from interlock.monitor.v1 import monitor_service_pb2 as pb
from interlock.monitor.v1 import prediction_event_pb2 as event_pb


def events(
    *, statuses: Sequence[int], model: str = "fraud", sequence: int = 1, dropped_count: int = 0
) -> pb.RecordPredictionsRequest:
    """Return a sound batch with one prediction per status."""
    count = len(statuses)
    batch = event_pb.PredictionBatch(
        model=model,
        version="1",
        variant="main",
        environment="production",
        epoch=7,
        prediction_ids=b"".join(uuid_utils.uuid7().bytes for _ in range(count)),
        has_tensors=[True] * count,
        statuses=statuses,
        buckets=[10_000] * count,
        principals=[0] * count,
        principal_names=["local"],
        degraded=[False] * count,
        cached=[False] * count,
        latencies_us=[900] * count,
        sampling_weights=[1.0] * count,
    )
    return pb.RecordPredictionsRequest(
        router_id="router-1", sequence=sequence, dropped_count=dropped_count, batch=batch
    )
