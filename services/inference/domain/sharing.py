"""Who may share a process: a version that keeps ending it must not go on taking its neighbours along."""

from collections.abc import Sequence
from math import inf
from typing import Final

from services.inference.domain.version import VersionKey

MOST_VERSIONS: Final = 32
"""In one process; the next version begins another one."""
_WITHIN_S: Final = 3600.0


def outgrown(resident_bytes: int, limits_bytes: Sequence[int], at_load_bytes: int) -> bool:
    """Return whether a process holds more than its versions may together, and than when the last one was loaded.

    A version without a limit (0) has none to share: then nothing is too much.
    """
    return bool(limits_bytes) and all(limits_bytes) and resident_bytes > max(sum(limits_bytes), at_load_bytes)


class Offenders:
    """Versions that were at work when a process ended that they shared. Times are monotonic seconds.

    Once may be chance: somebody else ended the process, or its memory was short. Twice within an hour is taken for proof,
    until the replica ends.
    """

    def __init__(self) -> None:
        self._blamed: dict[VersionKey, float] = {}
        self._proven: set[VersionKey] = set()

    def blame(self, key: VersionKey, now: float) -> None:
        """A shared process ended while this version was at work in it."""
        if now - self._blamed.get(key, -inf) <= _WITHIN_S:
            self._proven.add(key)
        self._blamed[key] = now

    def proven(self, key: VersionKey) -> bool:
        """Return whether the version must have a process of its own."""
        return key in self._proven
