"""A POSIX shared memory object of a client, by its own hands: what its maps and libraries would write is written here."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path("/dev/shm")


class SharedObject:
    """One object; `key` is what a client tells the server."""

    def __init__(self, size_bytes: int) -> None:
        self.name = f"il-test-{os.getpid()}-{secrets.token_hex(4)}"
        self.key = f"/{self.name}"
        self.path = FOLDER / self.name
        self.path.write_bytes(bytes(size_bytes))

    def put(self, data: bytes, offset: int = 0) -> None:
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def get(self, offset: int, size_bytes: int) -> bytes:
        return self.path.read_bytes()[offset : offset + size_bytes]

    def cut(self, size_bytes: int) -> None:
        os.truncate(self.path, size_bytes)


@contextmanager
def shared_object(size_bytes: int) -> Iterator[SharedObject]:
    made = SharedObject(size_bytes)
    try:
        yield made
    finally:
        made.path.unlink(missing_ok=True)
