"""Ids of predictions: UUIDs of version 7, which begin with the time."""

import time
from collections.abc import Callable

import uuid_utils


def new_prediction_id(*, nanoseconds: int | None = None, clock_ns: Callable[[], int] = time.time_ns) -> uuid_utils.UUID:
    """Return an id of now, or of a time in nanoseconds since 1970-01-01 UTC.

    The time is always given: left to itself the library never lets it go back, so that after a clock that was a day ahead
    has been set right, every prediction of that day would count as one of tomorrow.
    """
    return uuid_utils.uuid7(nanoseconds=clock_ns() if nanoseconds is None else nanoseconds)
