"""How a model process shows that it lives, and how much memory it holds: a page that both share, and /proc.

A page costs neither side a message: the worker counts up in it, the front end looks whether it has. A process that several
versions share also writes there which of them is at work: the page outlives the process, and says who ended it.
"""

import mmap
import os
import re
from pathlib import Path
from typing import Final

_PAGE = mmap.PAGESIZE
_COUNTER_BYTES = 8
RUNNING: Final = slice(8, 16)
"""Where the page has the number of the version whose batch runs; 0: none."""
LOADING: Final = slice(16, 24)
"""Where it has the number of the version that is loaded or warmed; 0: none."""
_SIZES = re.compile(r"^(VmRSS|RssShmem):\s*(\d+) kB$", re.MULTILINE)


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

    def at_work(self) -> tuple[int, int]:
        """Return the numbers of the versions that run a batch and that are loaded, 0 for none."""
        return _number(self._page[RUNNING]), _number(self._page[LOADING])

    def close(self) -> None:
        """Let the page go."""
        self._page.close()
        os.close(self.descriptor)


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process, less what it shares by files in memory; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    sizes = {name: int(size) * 1024 for name, size in _SIZES.findall(status)}
    return max(0, sizes.get("VmRSS", 0) - sizes.get("RssShmem", 0))
