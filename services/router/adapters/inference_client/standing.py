"""How replicas and versions fare: whom to leave alone, how long to wait for an answer, how often to try again."""

import time
from collections.abc import Callable
from typing import Final

from services.common.breaker import AsyncBreaker

_FIRST_AWAY_S: Final = 0.5
_LONGEST_AWAY_S: Final = 30.0
# Retransmission timer of TCP (Jacobson 1988, RFC 6298): smoothed time plus four mean deviations.
_NEWEST_TIME: Final = 1 / 8
_NEWEST_DEVIATION: Final = 1 / 4
_DEVIATIONS: Final = 4
# Twice that: a second try costs a run of the model, a spurious retransmission only a packet.
_MARGIN: Final = 2
_LEAST_SEEN: Final = 8
# At most one retry for ten requests in the long run; the store lets all that one replica held go elsewhere at once.
_RETRY_SHARE: Final = 0.1
_RETRIES_STORED: Final = 500.0


class Standing:
    """One version at one replica. After each failure it is left alone, each time longer; a breaker keeps the rest away.

    Requests that fail together, or began before the last failure, tell of one trouble and count once. Times are of
    `clock`, in seconds.
    """

    __slots__ = ("_clock", "_failed_at", "_strikes", "away_until", "breaker")

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.breaker = AsyncBreaker(name, _is_failure, clock=clock)
        self.away_until = 0.0
        self._clock = clock
        self._failed_at = 0.0
        self._strikes = 0

    def left(self, started: float, *, probing: bool, failed: bool | None) -> None:
        """Learn from a request that was sent at `started`; None means that its end tells nothing of the replica."""
        if failed and started <= self._failed_at and not probing:
            failed = None
        if failed:
            self._failed_at = self._clock()
            self._strikes += 1
            self.away_until = self._failed_at + min(_FIRST_AWAY_S * 2.0 ** min(self._strikes - 1, 30), _LONGEST_AWAY_S)
        elif failed is False and self._strikes and started > self.away_until:
            self._strikes = 0
        self.breaker.leave(probing=probing, failed=failed)


class Usual:
    """How long an answer of one version usually takes, and how often its requests may be sent again."""

    __slots__ = ("_budget", "_deviation_s", "_floor_s", "_seen", "_time_s")

    def __init__(self, floor_s: float) -> None:
        self._floor_s = floor_s
        self._seen = 0
        self._time_s = 0.0
        self._deviation_s = 0.0
        self._budget = _RETRIES_STORED

    @property
    def patience_s(self) -> float | None:
        """Seconds after which an answer is late; None while too few are known."""
        return max(self._floor_s, _MARGIN * self._late_s) if self._seen >= _LEAST_SEEN else None

    @property
    def _late_s(self) -> float:
        return self._time_s + _DEVIATIONS * self._deviation_s

    @property
    def may_retry(self) -> bool:
        """Whether there is a retry left."""
        return self._budget >= 1

    def was_enough(self, seconds: float) -> bool:
        """Whether a replica that had so long for an answer should have given one: half of what is nearly always enough."""
        return self._seen >= _LEAST_SEEN and seconds >= self._late_s / 2

    def answered(self, seconds: float) -> None:
        """Take note of an answer, and earn a part of a retry."""
        if not self._seen:
            self._time_s, self._deviation_s = seconds, seconds / 2
        else:
            self._deviation_s += _NEWEST_DEVIATION * (abs(seconds - self._time_s) - self._deviation_s)
            self._time_s += _NEWEST_TIME * (seconds - self._time_s)
        self._seen += 1
        self._budget = min(self._budget + _RETRY_SHARE, _RETRIES_STORED)

    def retried(self) -> None:
        """Take note of a request that is sent again."""
        self._budget -= 1


def _is_failure(_: BaseException) -> bool:
    return True  # not asked: who calls judges
