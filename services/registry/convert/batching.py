"""How a deployment's requests are joined and its processes kept, to and from the contract."""

from datetime import timedelta
from enum import Enum
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from interlock.registry.v1 import deployment_pb2

from services.common.stamp import duration_from_proto, duration_to_proto, enum_from_proto, enum_to_proto
from services.registry.domain.resource import Batching, ModelPlacement, NonFinitePolicy

_PLACEMENT_PREFIX: Final = "MODEL_PLACEMENT_"
_NON_FINITE_PREFIX: Final = "NON_FINITE_POLICY_"
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
        placement=_word(batching.placement, deployment_pb2.ModelPlacement, _PLACEMENT_PREFIX),
        non_finite=_word(batching.non_finite, deployment_pb2.NonFinitePolicy, _NON_FINITE_PREFIX),
    )


def _word(value: Enum | None, contract: Any, prefix: str) -> Any:
    return 0 if value is None else enum_to_proto(value, contract, prefix)


def _duration(value: timedelta | None) -> Duration | None:
    return None if value is None else duration_to_proto(value)


def batching_from_proto(message: deployment_pb2.BatchingPolicy) -> Batching:
    """Return how requests are joined into batches. A word that is not known counts as not given."""
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
        placement=enum_from_proto(ModelPlacement, deployment_pb2.ModelPlacement, _PLACEMENT_PREFIX, message.placement),
        non_finite=enum_from_proto(
            NonFinitePolicy, deployment_pb2.NonFinitePolicy, _NON_FINITE_PREFIX, message.non_finite
        ),
        **times,
    )
