"""How replicas and versions fare: whom to leave alone, how long to wait for an answer, how often to try again."""

import random
import time
from collections.abc import Callable
from typing import Final

from services.common.breaker import RecentCalls, circuit

_FIRST_AWAY_S: Final = 0.5
_LONGEST_AWAY_S: Final = 30.0
_FIRST_OPEN_S: Final = 1.0
_FAILURES_IN_A_ROW: Final = 5
_PROBES_TO_CLOSE: Final = 3
_JITTER: Final = 0.2
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
    """One version at one replica: it is left alone after each failure, each time longer, and a breaker keeps all away.

    Other than the breaker of `services.common` this one lets requests find out whether a replica is well again, one at a
    time: there is nothing else that tells it of one version. It opens after 5 failures in a row, or when half of 20
    requests failed within 10 s, for 1 s, each further time twice as long, at most 30 s, give or take a fifth; 3 good
    probes close it. Requests that fail together, or began before the last failure, tell of one trouble and count once.
    Times are of `clock`, in seconds.
    """

    __slots__ = (
        "_circuit",
        "_clock",
        "_failed_at",
        "_good_probes",
        "_in_a_row",
        "_open",
        "_opened",
        "_probing",
        "_recent",
        "_retry_at",
        "away_until",
    )

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.away_until = 0.0
        self._circuit = circuit(name)
        self._clock = clock
        self._failed_at = 0.0
        self._in_a_row = 0
        self._recent = RecentCalls()
        self._open = False
        self._opened = 0
        self._retry_at = 0.0
        self._probing = False
        self._good_probes = 0

    @property
    def refuses(self) -> bool:
        """Whether nothing should be sent now."""
        return self._open and (self._probing or self._clock() < self._retry_at)

    def enter(self) -> bool:
        """Let a request pass; returns whether it is a probe. Each is followed by `left`."""
        self._probing = self._open
        return self._open

    def left(self, started: float, *, probing: bool, failed: bool | None) -> None:
        """Learn from a request that was sent at `started`; None means that its end tells nothing of the replica."""
        if probing:
            self._probing = False
        if failed and (started > self._failed_at or probing):
            self._failed(probing=probing)
        elif failed is False:
            self._answered(started, probing=probing)

    def _failed(self, *, probing: bool) -> None:
        now = self._failed_at = self._clock()
        self._in_a_row += 1
        self.away_until = now + min(_FIRST_AWAY_S * 2.0 ** min(self._in_a_row - 1, 30), _LONGEST_AWAY_S)
        self._recent.add(now, failed=True)
        if probing or (not self._open and (self._in_a_row >= _FAILURES_IN_A_ROW or self._recent.mostly_failed())):
            pause_s = min(_FIRST_OPEN_S * 2.0 ** min(self._opened, 30), _LONGEST_AWAY_S)
            self._retry_at = now + pause_s * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - jitter
            self._good_probes = 0
            self._opened += 1
            self._open = True
            self._circuit.open()

    def _answered(self, started: float, *, probing: bool) -> None:
        if started > self._failed_at:
            self._in_a_row = 0
        self._recent.add(started, failed=False)
        if probing:
            self._good_probes += 1
            if self._good_probes >= _PROBES_TO_CLOSE:
                self._opened = 0
                self._recent.clear()
                self._open = False
                self._circuit.close()


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
