"""Windows of a version in a row, each with all of its variants merged."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import structlog

from services.monitor.domain.drift_null import MINIMUM_BLOCKS
from services.monitor.domain.label_free import ScoreSketch
from services.monitor.domain.numeric_sketch import SketchUnreadable
from services.monitor.domain.policy import DAY_US, SECOND_US
from services.monitor.domain.quality_window import QualityWindow
from services.monitor.domain.scope import Scope
from services.monitor.domain.window import WindowKey, WindowSketch

RECENT_LIMIT: Final = 200
USUAL_LIMIT: Final = 400
STARTS_LIMIT: Final = 1_000
_LOG: Final = structlog.get_logger(part="windows")
_WindowT = TypeVar("_WindowT", WindowSketch, QualityWindow, ScoreSketch)


@dataclass(frozen=True, slots=True)
class Placed(Generic[_WindowT]):
    """One window and when it is."""

    start_us: int
    end_us: int
    window: _WindowT

    @property
    def start_s(self) -> float:
        """Begin, seconds since 1970 UTC."""
        return self.start_us / SECOND_US


def decoded(encoded: Iterable[tuple[WindowKey, bytes]], decode: Callable[[bytes], _WindowT]) -> list[Placed[_WindowT]]:
    """Return windows by time, those of the same time merged; what cannot be read is left out and logged."""
    found: dict[tuple[int, int], _WindowT] = {}
    for key, body in encoded:
        try:
            window = decode(body)
        except SketchUnreadable as error:
            _LOG.error("window_unreadable", window=repr(key), error=str(error))
            continue
        place = (key.start_us, key.end_us)
        if place in found:
            found[place].merge(window)
        else:
            found[place] = window
    return [Placed(start, end, window) for (start, end), window in sorted(found.items())]


def recent(times: Sequence[tuple[int, int]], scope: Scope) -> list[int]:
    """Return the begins of the last windows before a scope, at most 200; `times` ascending."""
    return [start for start, end in times if end <= scope.start_us][-RECENT_LIMIT:]


def usual(
    times: Sequence[tuple[int, int]], scope: Scope, drifted: Collection[tuple[int, int]] = frozenset()
) -> list[int]:
    """Return the begins of the windows that tell what is usual for a scope.

    Those of the same hours of the days before where enough of these days had no drift, for a null of their own
    (`drift_null`); else the last ones too, for what the week had so far.
    """
    length = scope.end_us - scope.start_us
    period = DAY_US * -(-length // DAY_US)
    days: dict[int, list[int]] = {}
    unusual = set()
    for start, end in times:
        ago = -(-(scope.start_us - start) // period)
        if end <= scope.start_us and ago >= 1 and start < scope.start_us - ago * period + length:
            days.setdefault(ago, []).append(start)
            if (start, end) in drifted:
                unusual.add(ago)
    # More blocks than these add little, and a long scope has long ones.
    most = max(MINIMUM_BLOCKS + 2, USUAL_LIMIT * scope.policy.window_us // max(length, 1))
    chosen = sorted(days)[:most]
    if len(chosen) < MINIMUM_BLOCKS:
        return recent(times, scope)
    starts = {start for ago in chosen for start in days[ago]}
    if len(set(chosen) - unusual) < MINIMUM_BLOCKS:
        starts.update(recent(times, scope))
    return sorted(starts)[-STARTS_LIMIT:]


def merged(windows: Sequence[Placed[WindowSketch]]) -> WindowSketch:
    """Return all windows as one."""
    total = WindowSketch()
    for placed in windows:
        total.merge(placed.window)
    return total
