"""How many processors this process may use, and how it shares them."""

import contextlib
import os
from pathlib import Path
from typing import Final

_CGROUP_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


def thread_count(wanted: int) -> int:
    """Return `wanted`, or for 0 as many as this process may run at once: by affinity and by cgroup quota."""
    available = len(os.sched_getaffinity(0))
    quota = _cgroup_cpus()
    most = max(1, min(available, quota) if quota else available)
    return min(wanted, most) if wanted > 0 else most


def schedule_in_batches() -> None:
    """Let this process, and the threads and children that it starts from now on, be woken without interrupting others.

    On a busy processor each message otherwise stops its sender in favour of its receiver: Envoy's thread runs for a
    single answer while Python, stopped in the middle of a turn, holds the interpreter's lock. Without that, messages
    gather while a thread works, and a prediction takes a quarter of the switches. An idle processor does as ever.
    """
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _cgroup_cpus() -> int:
    """Return how many processors the cgroup's quota amounts to; 0 when there is none."""
    try:
        quota, period = _CGROUP_QUOTA.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return 0
    return 0 if quota == "max" else max(1, int(quota) // int(period))
