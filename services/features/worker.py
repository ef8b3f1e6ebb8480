"""The child process of offline work: `python -m services.features.worker <folder>`."""

import contextlib
import errno
import json
import os
import sys
import threading
from pathlib import Path
from typing import Final

from services.common.errors import to_status
from services.features.adapters.batch_reader import BatchReader
from services.features.adapters.offline_task import read_task, write_error
from services.features.adapters.offline_work import is_disk_full, run_task
from services.features.domain.file_roots import FileRoots

_NICENESS: Final = 10
_FIRST_TO_GO: Final = "500"


def main() -> int:
    """Do the work of a folder; exit 0 when result or error stands there, ENOSPC when the disk has no room for either."""
    folder = Path(sys.argv[1])
    _step_back()
    access = json.loads(sys.stdin.buffer.readline())
    reader = BatchReader(access["connections"], FileRoots(access["roots"]))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        run_task(folder, read_task(folder), reader)
    except Exception as error:
        if is_disk_full(error):
            return errno.ENOSPC
        write_error(folder, to_status(error, folder.name))
        if not hasattr(error, "reason"):
            raise
    return 0


def _step_back() -> None:
    """Let calls go first, and let the kernel, when memory runs out, end this process rather than one that serves."""
    os.nice(_NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO, encoding="ascii")


def _end_with_parent() -> None:
    # Not through sys.stdin: its lock, held by a thread that waits, would abort the interpreter when it ends.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
