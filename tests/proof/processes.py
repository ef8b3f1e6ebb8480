"""Processes with all that they started: how much memory they hold, and how they stand still for a while."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import psutil


def process_tree(pid: int) -> list[psutil.Process]:
    """Return a process and all that it started; none when it is gone."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def resident_bytes(pids: Iterable[int]) -> int:
    """Return the resident memory of these processes and of all that they started; who is gone holds nothing."""
    total = 0
    for pid in pids:
        for process in process_tree(pid):
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total


@contextmanager
def standing_still(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Stop the processes, and let those that are still there go on afterwards, the last one first."""
    try:
        for process in processes:
            process.suspend()
        yield
    finally:
        for process in reversed(processes):
            with suppress(psutil.NoSuchProcess):
                process.resume()
