"""A circuit breaker for async calls: who is known to be down is not asked, and is tried again soon.

Our own: pybreaker's gate lets coroutines pass uncounted, admits any number of probes, and only ever counts failures in a
row; and it imports redis.
"""

import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog

_LOG: Final = structlog.get_logger(part="breaker")
_CLOSED: Final = "closed"
_OPEN: Final = "open"
_HALF_OPEN: Final = "half-open"
_WINDOW_S: Final = 10.0
_LEAST_CALLS: Final = 20
_FAILURE_SHARE: Final = 0.5
_FAILURES_IN_A_ROW: Final = 5
_PROBES_TO_CLOSE: Final = 3
_JITTER: Final = 0.2
# More than anyone looks back; the window bounds it in time.
_REMEMBERED: Final = 1_000


class CircuitOpen(Exception):
    """The peer is known to be down, or is being tried by somebody else; nothing was sent."""


class AsyncBreaker:
    """One per peer. Opens at half of 20 calls failing within 10 s or 5 in a row, closes after 3 good probes.

    It stays open for `first_open_s`, twice as long after each probe that fails, at most `longest_open_s`; seconds, give
    or take a fifth. While it is half open one call at a time goes through. `judge` says of an exception whether the peer
    failed (True); what it does not, a cancellation or a caller's mistake, is neither a failure nor a success.
    """

    def __init__(
        self,
        name: str,
        judge: Callable[[BaseException], bool],
        *,
        first_open_s: float = 1.0,
        longest_open_s: float = 30.0,
        on_state: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._judge = judge
        self._first_open_s = first_open_s
        self._longest_open_s = longest_open_s
        self._clock = clock
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=_REMEMBERED)
        self._in_a_row = 0
        self._reopened = 0
        self._retry_at = 0.0
        self._probing = False
        self._good_probes = 0
        self._on_state = on_state
        self._state = _CLOSED
        on_state(_CLOSED)

    @property
    def state(self) -> str:
        """Return "closed", "open" or "half-open"."""
        return self._state

    @property
    def refuses(self) -> bool:
        """Whether a call would be refused now."""
        if self._state == _OPEN:
            return self._clock() < self._retry_at
        return self._probing

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Let one call pass and learn from how the block ends; raises CircuitOpen instead where the peer is down."""
        if self.refuses:
            raise CircuitOpen(self._name)
        if self._state == _OPEN:
            self._change(_HALF_OPEN)
        probing = self._state == _HALF_OPEN
        self._probing = probing
        try:
            yield
        except BaseException as error:
            if self._judge(error):
                self._failed(probing=probing)
            raise
        else:
            self._succeeded(probing=probing)
        finally:
            if probing:
                self._probing = False

    def _succeeded(self, *, probing: bool) -> None:
        self._in_a_row = 0
        if probing:
            self._good_probes += 1
            if self._good_probes >= _PROBES_TO_CLOSE:
                self._close()
        elif self._state == _CLOSED:
            self._remember(failed=False)

    def _failed(self, *, probing: bool) -> None:
        self._in_a_row += 1
        if probing:
            self._open()
        elif self._state == _CLOSED:
            # Any other call began before the peer was known to be down, and tells nothing new.
            self._remember(failed=True)
            if self._in_a_row >= _FAILURES_IN_A_ROW or self._mostly_failing():
                self._open()

    def _remember(self, *, failed: bool) -> None:
        now = self._clock()
        self._outcomes.append((now, failed))
        while self._outcomes[0][0] < now - _WINDOW_S:
            self._outcomes.popleft()

    def _mostly_failing(self) -> bool:
        failures = sum(failed for _, failed in self._outcomes)
        return len(self._outcomes) >= _LEAST_CALLS and failures >= _FAILURE_SHARE * len(self._outcomes)

    def _open(self) -> None:
        open_s = min(self._first_open_s * 2**self._reopened, self._longest_open_s)
        self._retry_at = self._clock() + open_s * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - jitter
        self._reopened = min(self._reopened + 1, 30)
        self._good_probes = 0
        self._change(_OPEN)

    def _close(self) -> None:
        self._outcomes.clear()
        self._reopened = 0
        self._change(_CLOSED)

    def _change(self, state: str) -> None:
        before, self._state = self._state, state
        if _CLOSED in (before, state):
            # Not each probe of a peer that stays down.
            _LOG.warning("breaker", name=self._name, state=state)
        self._on_state(state)
