"""Which predictions an analysis looks at."""

from dataclasses import dataclass
from typing import Final

from services.common.errors import INVALID_FIELD, Violation, echo
from services.common.refusals import InvalidRequest
from services.monitor.domain.failure import INVALID_WINDOW
from services.monitor.domain.policy import DAY_US, SECOND_US, MonitoringPolicy, PolicyBook
from services.monitor.domain.version_info import VersionInfo
from services.monitor.domain.window_ports import Selection, VersionFinder, WindowStore

DEFAULT_ENVIRONMENT: Final = "production"
WINDOW_LIMIT: Final = 2_500
"""Windows that one answer may be computed from: 90 days of hours, not of minutes."""


@dataclass(frozen=True, slots=True)
class ScopeRequest:
    """What was asked to be looked at."""

    model: str
    version: str
    """Id, semantic label or alias."""
    environment: str = DEFAULT_ENVIRONMENT
    start_us: int | None = None
    end_us: int | None = None
    slice_name: str = ""
    variant: str = ""
    """Empty: all."""
    path: str = "scope"
    """Field that it came in, for errors."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What is looked at: whole windows."""

    info: VersionInfo
    policy: MonitoringPolicy
    environment: str
    start_us: int
    end_us: int
    slice_name: str
    variant: str

    @property
    def window_s(self) -> float:
        """Length of a window."""
        return self.policy.window_us / SECOND_US

    def selection(self, start_us: int | None = None, end_us: int | None = None) -> Selection:
        """Return how its windows are found, or those of another stretch of time."""
        return Selection(
            self.info.model,
            self.info.version,
            self.environment,
            self.start_us if start_us is None else start_us,
            self.end_us if end_us is None else end_us,
            self.slice_name,
            self.variant or None,
        )


class Scopes:
    """Makes scopes of requests."""

    def __init__(self, store: WindowStore, versions: VersionFinder, book: PolicyBook, *, retention_us: int) -> None:
        self._store = store
        self._versions = versions
        self._book = book
        self._retention_us = retention_us

    async def resolve(self, request: ScopeRequest, now_us: int) -> Scope:
        """Return the scope.

        Raises ResourceNotFound for an unknown version, InvalidRequest for an unknown slice and for a time that is empty,
        reversed or longer than what is kept, RegistryUnavailable.
        """
        info = await self._versions.find(request.model, request.version)
        policy = self._book.at(info.model, now_us if request.start_us is None else request.start_us)
        self._check_slice(request, policy)
        # What is empty is refused before it is widened to something.
        self._check_times(request, request.start_us, request.end_us)
        start_us, end_us = await self._times(request, info, policy, now_us)
        self._check_times(request, start_us, end_us)
        if (end_us - start_us) // policy.window_us > WINDOW_LIMIT:
            want = f"want at most {WINDOW_LIMIT:,} windows, got {(end_us - start_us) // policy.window_us:,}"
            raise InvalidRequest([Violation(f"{request.path}.start_time", want)], INVALID_WINDOW)
        return Scope(info, policy, request.environment, start_us, end_us, request.slice_name, request.variant)

    async def _times(
        self, request: ScopeRequest, info: VersionInfo, policy: MonitoringPolicy, now_us: int
    ) -> tuple[int, int]:
        window_us = policy.window_us
        if request.start_us is not None and request.end_us is not None:
            return request.start_us - request.start_us % window_us, _up(request.end_us, window_us)
        if request.end_us is not None:
            end_us = _up(request.end_us, window_us)
            return end_us - window_us, end_us
        last_us = await self._last_complete(info.model, request.environment, policy, now_us)
        if request.start_us is None:
            return last_us
        start_us = request.start_us - request.start_us % window_us
        # A scope that begins in the window that is open holds that one.
        return start_us, max(last_us[1], start_us + window_us)

    async def _last_complete(
        self, model: str, environment: str, policy: MonitoringPolicy, now_us: int
    ) -> tuple[int, int]:
        """Return begin and end of the last complete window of a model that has predictions.

        A window is complete when the clock has passed its end, or predictions of a later one are there: in a replay
        prediction times are ahead of the clock.
        """
        newest_us = await self._store.newest_start(model, environment)
        until_us = now_us if newest_us is None else max(now_us, newest_us)
        found = await self._store.newest_complete(model, environment, until_us)
        end_us = until_us - until_us % policy.window_us
        return found or (end_us - policy.window_us, end_us)

    def _check_times(self, request: ScopeRequest, start_us: int | None, end_us: int | None) -> None:
        if start_us is None or end_us is None:
            return
        want = ""
        if end_us <= start_us:
            want = f"want a time after start_time, got one {(start_us - end_us) / SECOND_US:g} s before"
        elif end_us - start_us > self._retention_us:
            days = self._retention_us / DAY_US
            want = f"want at most the {days:g} days that are kept, got {(end_us - start_us) / DAY_US:g}"
        if want:
            raise InvalidRequest([Violation(f"{request.path}.end_time", want)], INVALID_WINDOW)

    def _check_slice(self, request: ScopeRequest, policy: MonitoringPolicy) -> None:
        known = {found.name for found in (*policy.slices, *self._book.current(policy.model).slices)}
        if request.slice_name and request.slice_name not in known:
            want = f"want a slice of the policy ({', '.join(sorted(known)) or 'it has none'})"
            wrong = Violation(f"{request.path}.slice", f"{want}, got {echo(request.slice_name)}")
            raise InvalidRequest([wrong], INVALID_FIELD)


def _up(time_us: int, window_us: int) -> int:
    return -(-time_us // window_us) * window_us
