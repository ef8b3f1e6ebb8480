"""Where a launcher keeps the sockets and bootstraps of its processes."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# A Unix socket's path has room for 107 bytes; names of ours take the rest.
_LONGEST_FOLDER: Final = 70


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One launcher's own folder: two of one name run side by side during a replacement."""

    path: Path

    def of(self, name: str, process: int | None) -> Path:
        """Return where `name` of a process lies; the only process of its launcher has no number."""
        return self.path / (name if process is None else f"{process}-{name}")


@contextmanager
def run_folder(state_dir: Path, name: str) -> Iterator[RunFolder]:
    """Make the folder of launcher `name` below the state folder, and remove it at the end."""
    path = state_dir.absolute() / "run" / f"{name}-{os.getpid()}"
    if len(os.fsencode(path)) > _LONGEST_FOLDER:
        path = Path(tempfile.mkdtemp(prefix="il-"))
    else:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        yield RunFolder(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)
