"""A circuit breaker for async calls: who is known to be down is not asked, but tried again in the background.

pybreaker keeps the state and tells listeners; its own gate is not used, as it lets coroutines pass uncounted, admits any
number of probes, and only ever counts failures in a row.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import structlog
from pybreaker import STATE_CLOSED, CircuitBreaker, CircuitBreakerListener

from services.common.tasks import spawn

_LOG: Final = structlog.get_logger(part="breaker")
_WINDOW_S: Final = 10.0
_LEAST_CALLS: Final = 20
_FAILURE_SHARE: Final = 0.5
_PROBES_TO_CLOSE: Final = 3
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 0.5
_JITTER: Final = 0.2
# More than anyone looks back; the window bounds it in time.
_REMEMBERED: Final = 1_000


class CircuitOpen(Exception):
    """The peer is known to be down; nothing was sent."""


def circuit(name: str, on_state: Callable[[str], None] = lambda _: None) -> CircuitBreaker:
    """Return a closed circuit that logs when it opens and closes, and tells `on_state` of each change."""
    return CircuitBreaker(name=name, listeners=[_Listener(on_state)], throw_new_error_on_trip=False)


class RecentCalls:
    """How the calls of the last 10 s ended."""

    __slots__ = ("_ends",)

    def __init__(self) -> None:
        self._ends: deque[tuple[float, bool]] = deque(maxlen=_REMEMBERED)

    def add(self, now: float, *, failed: bool) -> None:
        """Take a call into account; `now` in seconds, never going back far."""
        self._ends.append((now, failed))
        while self._ends[0][0] < now - _WINDOW_S:
            self._ends.popleft()

    def mostly_failed(self) -> bool:
        """Return whether half of them failed, of at least 20."""
        failures = sum(failed for _, failed in self._ends)
        return len(self._ends) >= _LEAST_CALLS and failures >= _FAILURE_SHARE * len(self._ends)

    def clear(self) -> None:
        """Forget all."""
        self._ends.clear()


class AsyncBreaker:
    """One per peer. Opens when half of 20 calls fail within 10 s, or so many in a row; then every call is refused.

    `judge` says how many failures in a row an exception counts for; 0 for what does not tell that the peer failed, a
    cancellation or a caller's mistake: neither a failure nor a success. While it is open `probe` is awaited in the
    background until it has ended well three times in a row, which closes it: 0.05 s after it opened and after each good
    one, and after each bad one twice as long as before, at most 0.5 s, give or take a fifth. So no caller waits to find
    out whether the peer is back, and it is found out without callers. A probe must bound its own time.
    """

    def __init__(
        self,
        name: str,
        judge: Callable[[BaseException], int],
        probe: Callable[[], Awaitable[object]],
        *,
        failures_in_a_row: int = 5,
        on_state: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._name = name
        self._judge = judge
        self._probe = probe
        self._failures_in_a_row = failures_in_a_row
        self._clock = clock
        self._sleep = sleep
        self._recent = RecentCalls()
        self._in_a_row = 0
        self._probing: asyncio.Task[None] | None = None
        self._circuit = circuit(name, on_state)
        on_state(STATE_CLOSED)

    @property
    def state(self) -> str:
        """Return "closed", "open", or "half-open" once a probe has ended well."""
        return str(self._circuit.current_state)

    @property
    def refuses(self) -> bool:
        """Whether a call would be refused now."""
        return self._probing is not None

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Let one call pass and learn from how the block ends; raises CircuitOpen instead where the peer is down."""
        if self.refuses:
            raise CircuitOpen(self._name)
        try:
            yield
        except BaseException as error:
            self._failed(self._judge(error))
            raise
        else:
            self._in_a_row = 0
            self._recent.add(self._clock(), failed=False)

    async def close(self) -> None:
        """End the probes."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)

    def _failed(self, weight: int) -> None:
        # A call that began before the peer was known to be down tells nothing new.
        if weight == 0 or self.refuses:
            return
        self._in_a_row += weight
        self._recent.add(self._clock(), failed=True)
        if self._in_a_row >= self._failures_in_a_row or self._recent.mostly_failed():
            self._probing = spawn(self._find_out(), f"probe-{self._name}")
            self._circuit.open()

    async def _find_out(self) -> None:
        """Probe until the peer is back."""
        good, pause_s = 0, _FIRST_PAUSE_S
        while good < _PROBES_TO_CLOSE:
            await self._sleep(pause_s * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311 - jitter
            if await self._is_good_probe():
                good, pause_s = good + 1, _FIRST_PAUSE_S
                self._circuit.half_open()
            else:
                good, pause_s = 0, min(2 * pause_s, _LONGEST_PAUSE_S)
                self._circuit.open()
        self._recent.clear()
        self._in_a_row = 0
        self._probing = None
        self._circuit.close()

    async def _is_good_probe(self) -> bool:
        try:
            await self._probe()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # A client library gave its own call up. The search must go on, or the circuit stays open for good.
            return False
        except Exception as error:  # noqa: BLE001 - whatever is not the peer's failure shows that it is there
            return not self._judge(error)
        return True


class _Listener(CircuitBreakerListener):
    def __init__(self, on_state: Callable[[str], None]) -> None:
        self._on_state = on_state

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        if old_state is None or old_state.name == new_state.name:
            return
        if STATE_CLOSED in (old_state.name, new_state.name):
            # Not each probe of a peer that stays down.
            _LOG.warning("breaker", name=cb.name, state=new_state.name)
        self._on_state(new_state.name)
