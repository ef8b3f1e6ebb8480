"""What the operating system gives."""

import resource
import shutil
import time
from pathlib import Path
from typing import Final

from interlock_cli.doctor.finding import Finding
from interlock_cli.stack.state_folder import StateFolder

_GIB: Final = 1 << 30
_MIB: Final = 1 << 20
_LEAST_DISK_BYTES: Final = _GIB
_LEAST_OPEN_FILES: Final = 4096
_LEAST_SHARED_BYTES: Final = 256 * _MIB
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - it is looked at, nothing is written there
# Nothing of this release can run before it was written.
_RELEASE_YEAR: Final = 2026


def disk_space(folder: StateFolder) -> Finding:
    """Whether models, logs and the registry fit beside what is there."""
    place = next(path for path in (folder.path, *folder.path.parents) if path.exists())
    free_bytes = shutil.disk_usage(place).free
    return Finding(
        "disk space",
        free_bytes >= _LEAST_DISK_BYTES,
        f"{free_bytes / _GIB:.1f} GiB free at {place}",
        "free at least 1 GiB, or set INTERLOCK_STATE_DIR to a folder on another disk",
    )


def open_files() -> Finding:
    """Whether a few thousand connections fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Finding(
        "open files",
        soft >= _LEAST_OPEN_FILES or soft == resource.RLIM_INFINITY,
        f"at most {soft} (the hard limit is {hard})",
        f"run `ulimit -n {_LEAST_OPEN_FILES}` before the start",
    )


def shared_memory() -> Finding:
    """Whether batches can go to model workers over shared memory."""
    name = "shared memory"
    if not _SHARED_MEMORY.is_dir():
        return Finding(
            name, good=False, detail=f"{_SHARED_MEMORY} is not there", fix=f"mount a tmpfs on {_SHARED_MEMORY}"
        )
    free_bytes = shutil.disk_usage(_SHARED_MEMORY).free
    return Finding(
        name,
        free_bytes >= _LEAST_SHARED_BYTES,
        f"{free_bytes // _MIB} MiB free at {_SHARED_MEMORY}",
        "enlarge it: `mount -o remount,size=1G /dev/shm`, or `--shm-size 1g` for a container",
    )


def clock() -> Finding:
    """Whether the clock can be right: ids and audit entries carry its time."""
    year = time.gmtime().tm_year
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return Finding("clock", year >= _RELEASE_YEAR, now, "set the clock, for example with `timedatectl set-ntp true`")
