"""How a deployment's requests are joined and its processes kept, to and from the contract; and what cannot be right."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Final, cast

from google.protobuf.duration_pb2 import Duration
from interlock.registry.v1 import deployment_pb2

from services.common.errors import Violation
from services.common.stamp import duration_from_proto, duration_to_proto, enum_from_proto, enum_to_proto
from services.registry.domain.deploying import BATCH_SIZE_LIMIT
from services.registry.domain.resource import Batching, ModelPlacement

PLACEMENT_PREFIX: Final = "MODEL_PLACEMENT_"
SIZES_LIMIT: Final = 32
_LENGTH_LIMIT: Final = 1_048_576
_NUMBERS: Final[Mapping[str, int]] = {
    "max_batch_size": BATCH_SIZE_LIMIT,
    "max_queue_rows": 1_048_576,
    "max_queue_bytes": 4 * 1024**3,
    "instances": 64,
    "memory_limit_bytes": 2**50,
}
_TIMES: Final[Mapping[str, tuple[str, timedelta, timedelta]]] = {
    "max_delay": ("0 to 1 s", timedelta(), timedelta(seconds=1)),
    "latency_target": ("1 ms to 60 s", timedelta(milliseconds=1), timedelta(seconds=60)),
    "ageing": ("1 ms to 60 s", timedelta(milliseconds=1), timedelta(seconds=60)),
    "max_batch_time": ("1 ms to 1 h", timedelta(milliseconds=1), timedelta(hours=1)),
}


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


def batching_violations(batching: Batching) -> list[Violation]:
    """Return everything in a policy that cannot be right, whatever the model."""
    return [Violation(f"batching.{field}", text) for field, text in _violations(batching)]


def _violations(batching: Batching) -> Iterator[tuple[str, str]]:
    for name, most in _NUMBERS.items():
        value = getattr(batching, name)
        if not 0 <= value <= most:
            yield name, f"want 0 to {most}, got {value}"
    for name, (wanted, shortest, longest) in _TIMES.items():
        time = getattr(batching, name)
        if time is not None and not shortest <= time <= longest:
            yield name, f"want {wanted}, got {time.total_seconds():g} s"
    if batching.max_delay is not None and batching.latency_target is not None:
        yield "max_delay", "want none beside latency_target, which gives the wait, got one"
    yield from _ladder("batch_sizes", batching.batch_sizes, BATCH_SIZE_LIMIT)
    if batching.batch_sizes and batching.max_batch_size != batching.batch_sizes[-1]:
        last = batching.batch_sizes[-1]
        yield "max_batch_size", f"want {last}, the last of batch_sizes, got {batching.max_batch_size}"
    yield from _ladder("length_buckets", batching.length_buckets, _LENGTH_LIMIT)


def _ladder(name: str, sizes: Sequence[int], most: int) -> Iterator[tuple[str, str]]:
    if len(sizes) > SIZES_LIMIT:
        yield name, f"want at most {SIZES_LIMIT}, got {len(sizes)}"
    elif any(not 1 <= size <= most for size in sizes):
        yield name, f"want each from 1 to {most}, got {list(sizes)}"
    elif any(first >= second for first, second in pairwise(sizes)):
        yield name, f"want them ascending, got {list(sizes)}"
