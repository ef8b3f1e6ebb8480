"""How a deployment's requests are joined and its processes kept, to and from the contract."""

from datetime import timedelta
from typing import Final, cast

from google.protobuf.duration_pb2 import Duration
from interlock.registry.v1 import deployment_pb2

from services.common.stamp import duration_from_proto, duration_to_proto, enum_from_proto, enum_to_proto
from services.registry.domain.resource import Batching, ModelPlacement

PLACEMENT_PREFIX: Final = "MODEL_PLACEMENT_"
_TIMES: Final = ("max_delay", "latency_target", "ageing", "max_batch_time")


def batching_to_proto(batching: Batching | None) -> deployment_pb2.BatchingPolicy | None:
    """Return the contract's policy."""
    if batching is None:
        return None
    return deployment_pb2.BatchingPolicy(
        max_batch_size=batching.max_batch_size,
        max_delay=_duration(batching.max_delay),
        batch_sizes=batching.batch_sizes,
        latency_target=_duration(batching.latency_target),
        max_queue_rows=batching.max_queue_rows,
        max_queue_bytes=batching.max_queue_bytes,
        ageing=_duration(batching.ageing),
        max_batch_time=_duration(batching.max_batch_time),
        instances=batching.instances,
        memory_limit_bytes=batching.memory_limit_bytes,
        length_buckets=batching.length_buckets,
        placement=_placement(batching.placement),
    )


def _placement(placement: ModelPlacement | None) -> "deployment_pb2.ModelPlacement.ValueType":
    if placement is None:
        return deployment_pb2.MODEL_PLACEMENT_UNSPECIFIED
    number = enum_to_proto(placement, deployment_pb2.ModelPlacement, PLACEMENT_PREFIX)
    return cast("deployment_pb2.ModelPlacement.ValueType", number)


def _duration(value: timedelta | None) -> Duration | None:
    return None if value is None else duration_to_proto(value)


def batching_from_proto(message: deployment_pb2.BatchingPolicy) -> Batching:
    """Return how requests are joined into batches. A placement that is not known counts as not given."""
    given = {field.name for field, _ in message.ListFields()}
    times = {name: duration_from_proto(getattr(message, name)) for name in _TIMES if name in given}
    return Batching(
        max_batch_size=message.max_batch_size,
        batch_sizes=tuple(message.batch_sizes),
        max_queue_rows=message.max_queue_rows,
        max_queue_bytes=message.max_queue_bytes,
        instances=message.instances,
        memory_limit_bytes=message.memory_limit_bytes,
        length_buckets=tuple(message.length_buckets),
        placement=enum_from_proto(ModelPlacement, deployment_pb2.ModelPlacement, PLACEMENT_PREFIX, message.placement),
        **times,
    )
