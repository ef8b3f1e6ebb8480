"""Times, durations and enums of the contract as Python has them."""

from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_EnumT = TypeVar("_EnumT", bound=Enum)
_LONGEST = timedelta(days=3650 * 100)


def time_to_proto(time: datetime) -> Timestamp:
    """Return the contract's form of a time."""
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def time_from_proto(stamp: Timestamp) -> datetime:
    """Return the time, cut to microseconds; ValueError for one that no calendar has."""
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except OverflowError as error:
        raise ValueError(str(error)) from error


def duration_from_proto(duration: Duration) -> timedelta:
    """Return the duration, cut to microseconds and to a thousand years either way."""
    exact = duration.seconds * 1_000_000 + duration.nanos // 1_000
    longest = _LONGEST // timedelta(microseconds=1)
    return timedelta(microseconds=max(-longest, min(exact, longest)))


def duration_to_proto(duration: timedelta) -> Duration:
    """Return the contract's form of a duration."""
    message = Duration()
    message.FromTimedelta(duration)
    return message


def enum_from_proto(kind: type[_EnumT], contract: Any, prefix: str, number: int) -> _EnumT | None:
    """Return our value for a number of the contract's enum; None for one that is not given or not known."""
    try:
        return kind(contract.Name(number).removeprefix(prefix))
    except ValueError:
        return None


def enum_to_proto(value: Enum, contract: Any, prefix: str) -> int:
    """Return the contract's number for a value of ours."""
    number: int = contract.Value(f"{prefix}{value.value}")
    return number
