"""The log of one service: what its process writes, in files that do not grow without end."""

import asyncio
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import BinaryIO, Final

_READ_BYTES: Final = 64 * 1024


class LogFile:
    """Appends bytes; a full file becomes `<name>.1`, that one `<name>.2`, and so on."""

    def __init__(self, path: Path, limit_bytes: int, file_count: int) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._file_count = file_count
        self._file: BinaryIO = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Append `data`; a full disk loses lines, never the service."""
        try:
            if self._file.tell() + len(data) > self._limit_bytes:
                self._rotate()
            self._file.write(data)
        except OSError:
            return

    def close(self) -> None:
        """Close the current file."""
        self._file.close()

    def _rotate(self) -> None:
        self._file.close()
        for number in range(self._file_count - 1, 0, -1):
            source = _numbered(self._path, number - 1)
            if source.exists():
                source.replace(_numbered(self._path, number))
        # With a single file there is nothing to put aside: it starts over.
        self._file = self._path.open("wb" if self._file_count == 1 else "ab", buffering=0)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}") if number else path


class OutputPump:
    """Moves what a child writes into a log, without ever making the child wait for the disk's owner.

    `child_end` goes to the child as its standard output and error; close it here once the child has it.
    """

    def __init__(self, log: LogFile) -> None:
        self._log = log
        self._own_end, self.child_end = os.pipe()
        os.set_blocking(self._own_end, False)
        self._open = True
        asyncio.get_running_loop().add_reader(self._own_end, self._move)

    def close(self) -> None:
        """Take what is left and stop; a grandchild that holds the other end does not hold us."""
        if not self._open:
            return
        while self._move():
            pass
        self._end()

    def _move(self) -> bool:
        try:
            data = os.read(self._own_end, _READ_BYTES) if self._open else b""
        except BlockingIOError:
            return False
        if not data:
            self._end()
            return False
        self._log.write(data)
        return True

    def _end(self) -> None:
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._own_end)
            os.close(self._own_end)


def tail(path: Path, line_count: int) -> list[str]:
    """Return the last lines of a log, oldest first, from as many of its files as they take; none when there is no log."""
    if not line_count:
        return []
    data = b""
    for number in count():
        # One break more than lines: the first piece may be the end of a line that an older file began.
        if data.count(b"\n") > line_count:
            break
        try:
            data = _numbered(path, number).read_bytes() + data
        except FileNotFoundError:
            break
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    return [line.decode("utf-8", "replace") for line in lines[-line_count:]]


class Follower:
    """Reads what is appended to a log, across the moment when a full file is put aside."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._half = b""

    def lines(self) -> Iterator[str]:
        """Yield the whole lines that have been added since the last call; the first call begins at the end."""
        if self._file is None:
            self._file = self._open(at_end=True)
        while self._file is not None:
            yield from self._rest(self._file)
            following = self._open(at_end=False) if self._moved(self._file) else None
            if following is None:
                return
            self._file.close()
            self._file = following

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _open(self, *, at_end: bool) -> BinaryIO | None:
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return None
        file.seek(0, os.SEEK_END if at_end else os.SEEK_SET)
        return file

    def _moved(self, file: BinaryIO) -> bool:
        try:
            return self._path.stat().st_ino != os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            return False

    def _rest(self, file: BinaryIO) -> Iterator[str]:
        *whole, self._half = (self._half + file.read()).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace")
