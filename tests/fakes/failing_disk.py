"""A disk that fails as Linux lets it: a failed sync drops what was not written, and the next one says that all is well."""

import errno
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_File = tuple[int, int]


class FailingDisk:
    """Stands in for `os.fsync` and `os.fdatasync`, and knows what would be left after a loss of power."""

    def __init__(self) -> None:
        self.failing: Collection[str] = ()
        """Which of them fail."""
        self.trusted_again: list[str] = []
        """Files that were synced again after a sync of them had failed."""
        self._safe_bytes: dict[_File, int] = {}
        # Held open, so that no new file gets the number of an old one.
        self._failed: dict[_File, int] = {}

    def sync(self, function: str, descriptor: int) -> None:
        about = os.fstat(descriptor)
        file = (about.st_dev, about.st_ino)
        if file in self._failed:
            self.trusted_again.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        if function in self.failing:
            if stat.S_ISREG(about.st_mode) and file not in self._failed:
                self._failed[file] = os.dup(descriptor)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if file not in self._failed:
            self._safe_bytes[file] = about.st_size

    def lose_power(self, folder: Path) -> None:
        """Leave of each file what was synced before its first failure."""
        for path in folder.rglob("*"):
            about = path.stat()
            if stat.S_ISREG(about.st_mode):
                os.truncate(path, min(about.st_size, self._safe_bytes.get((about.st_dev, about.st_ino), 0)))

    def close(self) -> None:
        for descriptor in self._failed.values():
            os.close(descriptor)


@contextmanager
def failing_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[FailingDisk]:
    """Put such a disk under this process while the block runs; what it has synced is not synced in truth."""
    disk = FailingDisk()
    try:
        with monkeypatch.context() as patched:
            for name in ("fsync", "fdatasync"):
                patched.setattr(os, name, lambda descriptor, name=name: disk.sync(name, descriptor))
            yield disk
    finally:
        disk.close()
