"""How much memory processes hold."""

from collections.abc import Iterable

import psutil


def resident_bytes(pids: Iterable[int]) -> int:
    """Return the resident memory of these processes and of all that they started; who is gone holds nothing."""
    return sum(_resident_bytes(process) for pid in pids for process in _tree(pid))


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
