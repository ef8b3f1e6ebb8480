"""Times and durations of the contract as microseconds since 1970, and back."""

from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_LIMIT_S: Final = 253_402_300_800
"""Year 10,000."""


def time_from_proto(stamp: Timestamp) -> int | None:
    """Return microseconds since 1970 UTC; None for what is no time of the years 1 to 9999."""
    if not (-62_135_596_800 <= stamp.seconds < _LIMIT_S and 0 <= stamp.nanos < 1_000_000_000):
        return None
    return stamp.seconds * 1_000_000 + stamp.nanos // 1000


def time_to_proto(time_us: int) -> Timestamp:
    """Return a time of the contract."""
    return Timestamp(seconds=time_us // 1_000_000, nanos=time_us % 1_000_000 * 1000)


def duration_from_proto(duration: Duration) -> int:
    """Return microseconds, rounded towards zero."""
    return duration.seconds * 1_000_000 + duration.nanos // 1000


def duration_to_proto(duration_us: int) -> Duration:
    """Return a duration of at least 0."""
    return Duration(seconds=duration_us // 1_000_000, nanos=duration_us % 1_000_000 * 1000)
