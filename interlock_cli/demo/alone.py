"""One demo at a time in a state folder: two would answer and label the same flights twice."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interlock_cli.demo.failure import DemoFailed

_NAME = "demo.lock"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other demos out of the folder for as long as the context lasts. Raises DemoFailed when one is there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _NAME).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoFailed("another demo runs on this state folder: wait until it is done") from None
        yield
