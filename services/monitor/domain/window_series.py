"""Windows of a version in a row, each with all of its variants merged."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import structlog

from services.monitor.domain.numeric_sketch import SketchUnreadable
from services.monitor.domain.policy import SECOND_US
from services.monitor.domain.quality_window import QualityWindow
from services.monitor.domain.window import WindowKey, WindowSketch

_LOG: Final = structlog.get_logger(part="windows")
_WindowT = TypeVar("_WindowT", WindowSketch, QualityWindow)


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


def merged(windows: Sequence[Placed[WindowSketch]]) -> WindowSketch:
    """Return all windows as one."""
    total = WindowSketch()
    for placed in windows:
        total.merge(placed.window)
    return total
