"""What the model process may take from the machine: memory, priority, threads; and that it ends with its parent."""

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_LOADING_NICENESS: Final = 10


def ignore_signals() -> None:
    """Leave the end to the front end: Ctrl-C and a group-wide SIGTERM must not cut off what it still drains."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def live_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies, however that happens."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        sys.exit(0)  # it died before the line above


def limit_memory(limit_bytes: int) -> None:
    """Let no allocation lift the address space above the limit; 0 means none."""
    if limit_bytes > 0:
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))


def memory_bytes() -> int:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def thread_ids() -> set[int]:
    """Return the threads of this process, those of the runtime too."""
    return {int(thread.name) for thread in Path("/proc/self/task").iterdir()}


@contextmanager
def background_priority(spared: AbstractSet[int] = frozenset()) -> Iterator[None]:
    """Load and warm behind the versions that already serve; full priority after the block. Threads may be `spared`.

    Without the right to raise the priority again the process would stay slow for ever: then only the scheduling class is
    lowered, which anybody may take back.
    """
    if _may_raise_priority():
        niceness = os.getpriority(os.PRIO_PROCESS, 0)
        _set_niceness(niceness + _LOADING_NICENESS, spared)
        try:
            yield
        finally:
            _set_niceness(niceness, spared)
        return
    _set_scheduler(os.SCHED_BATCH, spared)
    try:
        yield
    finally:
        _set_scheduler(os.SCHED_OTHER, spared)


def usual_scheduling() -> None:
    """Leave the scheduling class that a front end under load was in when it started this process (`door_turns`)."""
    _set_scheduler(os.SCHED_OTHER, frozenset())


def _may_raise_priority() -> bool:
    return os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_NICE)[0] >= 20


def _set_niceness(niceness: int, spared: AbstractSet[int]) -> None:
    # Priority belongs to a thread, and the runtime has started some by now.
    for thread in thread_ids() - spared:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpriority(os.PRIO_PROCESS, thread, niceness)


def _set_scheduler(policy: int, spared: AbstractSet[int]) -> None:
    for thread in thread_ids() - spared:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.sched_setscheduler(thread, policy, os.sched_param(0))
