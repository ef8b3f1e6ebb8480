"""Whether a deployment's batching policy is sound, whatever the model."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Final

from services.common.errors import Violation
from services.registry.domain.resource import Batching

BATCH_SIZE_LIMIT: Final = 8_192
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


def check_batching(batching: Batching, path: str) -> list[Violation]:
    """Return everything in a policy that cannot be right, whatever the model."""
    return [Violation(f"{path}.{field}", text) for field, text in _violations(batching)]


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
