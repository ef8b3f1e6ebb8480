"""Wall clocks that can be moved while processes run: by libfaketime, where it is installed (`faketime` in Debian).

Monotonic clocks stay as they are, as on a machine whose time of day is set.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

LIBRARY: Final = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
"""None: not installed."""


class MovableClock:
    """The time of day of one process and of all that it starts."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.move(0)

    def move(self, ahead_s: float) -> None:
        """Set it so far ahead of the machine's; the process follows within a second."""
        # Whoever reads it meanwhile must find the old or the new one.
        new = self._file.with_suffix(".new")
        new.write_text(f"{ahead_s:+.0f}\n", "utf-8")
        new.replace(self._file)

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process must be started with."""
        return {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Seconds after which the file is read again.
            "FAKETIME_CACHE_DURATION": "1",
        }
