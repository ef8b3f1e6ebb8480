"""How a model process shows that it lives, and how much memory it holds: a page that both share, and /proc.

A page costs neither side a message: the worker counts up in it, the front end looks whether it has.
"""

import mmap
import os
from pathlib import Path

_PAGE = mmap.PAGESIZE
_COUNTER_BYTES = 8


class Heartbeat:
    """The front end's side: the page, and the last count seen."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("interlock-heartbeat")
        os.ftruncate(self.descriptor, _PAGE)
        self._page = mmap.mmap(self.descriptor, _PAGE)
        self._seen = b""

    def beaten(self) -> bool:
        """Return whether the worker has counted since the last look."""
        count = self._page[:_COUNTER_BYTES]
        beaten, self._seen = count != self._seen, count
        return beaten

    def close(self) -> None:
        """Let the page go."""
        self._page.close()
        os.close(self.descriptor)


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
