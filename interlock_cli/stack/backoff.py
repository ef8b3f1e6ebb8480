"""When a failed service may start again, and when it may not."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Full jitter below a bound that doubles with each failure in a row. Times in seconds."""

    first_wait_s: float = 0.2
    longest_wait_s: float = 10.0
    crash_limit: int = 5
    crash_window_s: float = 60.0


class Backoff:
    """Failures of one service within the window; `draw` gives a number from 0 to 1."""

    def __init__(self, policy: RestartPolicy, draw: Callable[[], float]) -> None:
        self._policy = policy
        self._draw = draw
        self._failed_at: deque[float] = deque()

    def fail(self, now: float) -> None:
        """Note a failure at `now`, monotonic seconds."""
        while self._failed_at and now - self._failed_at[0] > self._policy.crash_window_s:
            self._failed_at.popleft()
        self._failed_at.append(now)

    def forget(self) -> None:
        """Start over, for a service that somebody starts by hand."""
        self._failed_at.clear()

    @property
    def failure_count(self) -> int:
        """Failures within the window."""
        return len(self._failed_at)

    @property
    def exhausted(self) -> bool:
        """Whether the service is in a crash loop."""
        return self.failure_count >= self._policy.crash_limit

    def wait_s(self) -> float:
        """Return the seconds to wait before the next start."""
        bound = self._policy.first_wait_s * 2.0 ** (self.failure_count - 1)
        return self._draw() * min(bound, self._policy.longest_wait_s)
