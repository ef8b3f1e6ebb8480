"""Times of the contract as microseconds."""

from google.protobuf.timestamp_pb2 import Timestamp

_LIMIT_NANOS = 1_000_000_000


def time_us(stamp: Timestamp) -> int | None:
    """Return microseconds since 1970-01-01 UTC, cut down; None for what is no time."""
    if not 0 <= stamp.nanos < _LIMIT_NANOS:
        return None
    return stamp.seconds * 1_000_000 + stamp.nanos // 1000
