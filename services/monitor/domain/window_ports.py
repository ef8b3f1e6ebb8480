"""Where windows are kept, as the rules need it."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.monitor.domain.columns import PredictionColumns
from services.monitor.domain.quality_window import QualityWindow
from services.monitor.domain.version_info import VersionInfo
from services.monitor.domain.window import WindowKey, WindowSketch


@dataclass(frozen=True, slots=True)
class Selection:
    """Windows of a version that touch a stretch of time."""

    model: str
    version: str
    """Empty: of all versions."""
    environment: str
    start_us: int
    end_us: int
    slice_name: str = ""
    variant: str | None = None
    """None: of all variants."""
    starts_us: tuple[int, ...] = ()
    """Only windows that begin at one of these times, at most 1,000; empty: all."""


@dataclass(frozen=True, slots=True)
class VerdictKey:
    """One window of a version, all variants together."""

    model: str
    version: str
    environment: str
    slice_name: str
    start_us: int
    end_us: int


class WindowStore(Protocol):
    """Keeps windows of predictions and of labels. Every method raises ServiceError when it cannot."""

    async def add(self, windows: Mapping[WindowKey, WindowSketch], positions: Mapping[str, int]) -> None:
        """Add what was seen to what is kept, and set how far that is; all of it or nothing."""

    async def add_labelled(self, windows: Mapping[WindowKey, QualityWindow], position: tuple[str, int]) -> bool:
        """Do the same with labels, unless the position was reached before; returns whether it was done."""

    async def position(self, name: str) -> int:
        """Return how far something has been taken; 0 at the beginning."""

    async def read(self, selection: Selection) -> Sequence[tuple[WindowKey, bytes]]:
        """Return encoded windows, by time."""

    async def read_labelled(self, selection: Selection) -> Sequence[tuple[WindowKey, bytes]]:
        """Return encoded windows of labels, by time."""

    async def newest_change(self, selection: Selection) -> int:
        """Return when anything that `read` or `read_labelled` give was last changed, microseconds; 0 for nothing."""

    async def times(self, selection: Selection) -> Sequence[tuple[int, int]]:
        """Return begin and end of windows, by time, each once."""

    async def newest_start(self, model: str, environment: str) -> int | None:
        """Return when the newest window of a model begins; None without any."""

    async def newest_complete(self, model: str, environment: str, until_us: int) -> tuple[int, int] | None:
        """Return begin and end of the newest window of a model that ends by a time; None without any."""

    async def oldest_start(self, selection: Selection) -> int | None:
        """Return when the oldest window of a version begins, whatever the selection's time; None without any."""

    async def keep_verdict(self, key: VerdictKey, drifted: Sequence[str]) -> None:
        """Keep what had drifted in a window."""

    async def verdicts(self, selection: Selection) -> Mapping[tuple[int, int], Sequence[str]]:
        """Return what had drifted, by begin and end of the window; the selection's variant does not matter."""

    async def active(self, since_us: int) -> Sequence[tuple[str, str, str]]:
        """Return model, version, environment of what has windows that end after a time."""

    async def clean(self, before_us: int) -> None:
        """Drop windows that ended before a time."""


class Replay(Protocol):
    """Gives predictions back from the log."""

    def between(self, after_us: int, until_us: int) -> AsyncIterator[tuple[Sequence[PredictionColumns], int]]:
        """Yield what was received in (after, until], in pieces: predictions, and by when all is given with the piece."""


class VersionFinder(Protocol):
    """Tells versions and why there is none."""

    async def find(self, model: str, version: str) -> VersionInfo:
        """Return the version by id, semantic label or alias; raises ResourceNotFound or RegistryUnavailable."""
