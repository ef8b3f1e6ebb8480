"""The registry's batching policy as inference follows it. What the registry checks is not checked again."""

from typing import Final

from google.protobuf.duration_pb2 import Duration
from interlock.registry.v1.deployment_pb2 import (
    MODEL_PLACEMENT_INLINE,
    MODEL_PLACEMENT_SHARED,
    NON_FINITE_POLICY_REFUSE,
)
from interlock.registry.v1.deployment_pb2 import BatchingPolicy as PolicyMessage

from services.common.stamp import duration_from_proto
from services.inference.domain.version import (
    DEFAULT_AGEING_S,
    DEFAULT_MAX_BATCH_SIZE,
    DEFAULT_MAX_BATCH_TIME_S,
    DEFAULT_MAX_DELAY_S,
    BatchingPolicy,
    Placement,
)

_PLACEMENTS: Final = {MODEL_PLACEMENT_INLINE: Placement.INLINE, MODEL_PLACEMENT_SHARED: Placement.SHARED}


def batching_from_proto(message: PolicyMessage) -> BatchingPolicy:
    """Return the policy, with the defaults of what is not given."""
    return BatchingPolicy(
        max_batch_size=message.max_batch_size or DEFAULT_MAX_BATCH_SIZE,
        max_delay_s=_seconds(message.max_delay) if message.HasField("max_delay") else DEFAULT_MAX_DELAY_S,
        batch_sizes=tuple(message.batch_sizes),
        latency_target_s=_seconds(message.latency_target),
        max_queue_rows=message.max_queue_rows,
        max_queue_bytes=message.max_queue_bytes,
        ageing_s=_seconds(message.ageing) or DEFAULT_AGEING_S,
        max_batch_time_s=_seconds(message.max_batch_time) or DEFAULT_MAX_BATCH_TIME_S,
        instances=message.instances or 1,
        memory_limit_bytes=message.memory_limit_bytes,
        length_buckets=tuple(message.length_buckets),
        placement=_PLACEMENTS.get(message.placement, Placement.PROCESS),
        refuse_non_finite=message.non_finite == NON_FINITE_POLICY_REFUSE,
    )


def _seconds(duration: Duration) -> float:
    return duration_from_proto(duration).total_seconds()
