"""How many processors this process may use."""

import contextlib
import os
from pathlib import Path
from typing import Final

# As a container sees its own group: version 2 of cgroups has one file, version 1 two.
_CGROUPS: Final = Path("/sys/fs/cgroup")
_NO_QUOTA: Final = ("max", "-1")


def thread_count(wanted: int) -> int:
    """Return `wanted`, or for 0 as many as this process may run at once: by affinity and by cgroup quota."""
    available = len(os.sched_getaffinity(0))
    quota = _cgroup_cpus()
    most = max(1, min(available, quota) if quota else available)
    return min(wanted, most) if wanted > 0 else most


def _cgroup_cpus() -> int:
    """Return how many processors the cgroup's quota amounts to; 0 when there is none."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):
            quota, period = " ".join((_CGROUPS / name).read_text(encoding="ascii") for name in names).split()
            return 0 if quota in _NO_QUOTA else max(1, int(quota) // int(period))
    return 0
