"""How every version that had predictions lately is doing, kept at hand: what is scraped must cost nothing to ask."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from services.common.errors import ServiceError
from services.monitor.domain.analyses import Analyses, QualityRequest
from services.monitor.domain.failure import NoBaseline
from services.monitor.domain.policy import DAY_US
from services.monitor.domain.report import DriftReport, QualityReport, TrafficReport
from services.monitor.domain.scope import ScopeRequest

_LOG: Final = structlog.get_logger(part="standing")
VERSION_LIMIT: Final = 200
_JUDGED_AT_ONCE: Final = 8
_LATELY_US: Final = 2 * DAY_US


@dataclass(frozen=True, slots=True)
class Standing:
    """One version in its last complete window; its quality over the day that ends with that window."""

    model: str
    version: str
    environment: str
    traffic: TrafficReport
    drift: DriftReport | None
    """None for a version without a baseline."""
    quality: QualityReport


class Standings:
    """Asks now and then. Judging every window as it ends is also how drifted ones are told from usual ones later."""

    def __init__(self, analyses: Analyses) -> None:
        self._analyses = analyses
        self._known: dict[tuple[str, str, str], Standing] = {}

    def all(self) -> Sequence[Standing]:
        """Return the standings of the last time."""
        return tuple(self._known.values())

    async def run(self, interval_s: float) -> None:
        """Ask every so many seconds, for good."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.refresh()
            except ServiceError as error:
                _LOG.warning("standings_not_refreshed", reason=error.reason)
            except Exception as error:  # noqa: BLE001 - metrics go on whatever is wrong this time
                _LOG.error("standings_not_refreshed", exc_info=error)

    async def refresh(self) -> None:
        """Ask for every version that had predictions in the last two days, at most 200 of them."""
        active = sorted(await self._analyses.active(_LATELY_US))
        if len(active) > VERSION_LIMIT:
            _LOG.warning("standings_left_out", count=len(active) - VERSION_LIMIT)
        found = {}
        for key in active[:VERSION_LIMIT]:
            try:
                found[key] = await self._standing(key)
            except ServiceError as error:
                _LOG.warning("version_not_judged", model=key[0], version=key[1], reason=error.reason)
            except Exception as error:  # noqa: BLE001 - other versions go on
                _LOG.error("version_not_judged", model=key[0], version=key[1], exc_info=error)
        self._known = found

    async def _standing(self, key: tuple[str, str, str]) -> Standing:
        model, version, environment = key
        request = ScopeRequest(model, version, environment)
        traffic = await self._analyses.traffic(request)
        scope = traffic.scope
        known = self._known.get(key)
        if known is not None and known.drift is not None and known.traffic == traffic:
            # The window is over and nothing came late.
            drift: DriftReport | None = known.drift
        else:
            drift = await self._drift(request)
        if drift is not None:
            await self._analyses.judge_missed(request, _JUDGED_AT_ONCE)
        day = ScopeRequest(model, version, environment, scope.end_us - DAY_US, scope.end_us)
        return Standing(model, version, environment, traffic, drift, await self._analyses.quality(QualityRequest(day)))

    async def _drift(self, request: ScopeRequest) -> DriftReport | None:
        try:
            return await self._analyses.drift(request)
        except NoBaseline:
            return None
