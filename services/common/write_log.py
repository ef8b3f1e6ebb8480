"""A write-ahead log: records in segment files, each safe on disk before it is reported so.

A segment is `<created, Unix microseconds>-<id>.log`: eight bytes that say what it is, then records of a length and a
CRC-32 (4 bytes each, little-endian) and the payload. What a crash left half-written at the end is not read. Nothing here
is asynchronous: one thread appends, and others read what has been reported safe.

Several processes may share a folder, as two do while one takes over from the other: each holds a lock on its own
segments, and a segment that nobody holds belongs to whoever locks it first.
"""

import fcntl
import os
import threading
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from struct import Struct
from typing import BinaryIO, Final

import structlog

MAGIC: Final = b"ILWLOG1\n"
LOG_SUFFIX: Final = ".log"
DONE_SUFFIX: Final = ".done"
_NEW_SUFFIX: Final = ".new"
_HEAD: Final = Struct("<II")
_LOG: Final = structlog.get_logger(part="write-log")


@dataclass(slots=True)
class Segment:
    """One file of the log; `safe_bytes` of it are on disk for good, whatever is behind them."""

    path: Path
    id: str
    created_us: int
    safe_bytes: int

    def records(self) -> Iterator[bytes]:
        """Yield the payloads that are whole, up to what was safe when this was called."""
        end = self.safe_bytes
        with self._open() as file:
            position = len(MAGIC)
            if file.read(position) != MAGIC:
                end = 0
            while position + _HEAD.size <= end:
                size, crc = _HEAD.unpack(file.read(_HEAD.size))
                position += _HEAD.size + size
                payload = file.read(size) if position <= end else b""
                if len(payload) != size or zlib.crc32(payload) != crc:
                    # Torn by a crash before it was reported safe, or damaged since.
                    _LOG.warning("log_ends_early", segment=self.path.name, bytes_left=end - position + size)
                    return
                yield payload

    def _open(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except FileNotFoundError:
            # Became Parquet since somebody asked for it; what it held is what was asked for.
            return self.path.with_suffix(DONE_SUFFIX).open("rb")


class WriteLog:
    """Our segments of one folder: one is appended to, the others are sealed and wait to become Parquet."""

    def __init__(self, folder: Path, clock_us: Callable[[], int]) -> None:
        self._folder = folder
        self._clock_us = clock_us
        self._descriptor = -1
        self._locks: dict[str, int] = {}
        # Moves a segment from one list to the other in one step, as the event loop sees it.
        self._moving = threading.Lock()
        self.current: Segment | None = None
        self.sealed: list[Segment] = []

    def adopt(self) -> None:
        """Take the segments that a process has left which is no more; nothing is appended to them."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for segment in self._find(LOG_SUFFIX):
            if segment.id not in self._locks and (descriptor := _lock(segment.path)) is not None:
                self._locks[segment.id] = descriptor
                with self._moving:
                    self.sealed.append(segment)

    def done(self) -> list[Segment]:
        """Return the segments that are Parquet already and are kept for a while, the oldest first."""
        return self._find(DONE_SUFFIX)

    def append(self, payloads: Sequence[bytes]) -> None:
        """Return once the payloads are safe; after an OSError none of them counts, and the next append may succeed."""
        if self.current is None:
            self._begin()
        segment = self.current
        assert segment is not None, "begun above"
        data = memoryview(b"".join([_HEAD.pack(len(each), zlib.crc32(each)) + each for each in payloads]))
        size_bytes = len(data)
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            os.fdatasync(self._descriptor)
        except OSError:
            self._abandon(segment)
            raise
        segment.safe_bytes += size_bytes

    def seal(self) -> None:
        """Append no more to the current segment."""
        if self.current is not None:
            self._leave(self.current, keep=True)

    def finish(self, segment: Segment) -> None:
        """Take note that a sealed segment is Parquet."""
        done = segment.path.with_suffix(DONE_SUFFIX)
        segment.path.rename(done)
        self._let_go(segment)

    def drop(self, segment: Segment) -> None:
        """Delete a sealed segment: what it holds is safe elsewhere."""
        segment.path.unlink(missing_ok=True)
        self._let_go(segment)

    def unfinished(self) -> list[Segment]:
        """Return all segments that are not Parquet yet, the oldest first, each as long as it is now.

        Those of other processes are among them; of these the end may be torn.
        """
        with self._moving:
            current = [] if self.current is None else [self.current]
            own = {segment.id: replace(segment) for segment in [*self.sealed, *current]}
        return [own.get(segment.id, segment) for segment in self._find(LOG_SUFFIX)]

    def own_bytes(self) -> int:
        """Return the size of our segments."""
        with self._moving:
            return sum(each.safe_bytes for each in self.sealed) + (self.current.safe_bytes if self.current else 0)

    def close(self) -> None:
        """Let go of all segments; the next start finds them."""
        self.seal()
        while self._locks:
            os.close(self._locks.popitem()[1])

    def _begin(self) -> None:
        created_us = self._clock_us()
        segment_id = uuid.uuid4().hex
        path = self._folder / f"{created_us:020d}-{segment_id}{LOG_SUFFIX}"
        # Nobody else sees it before it is locked.
        hidden = path.with_suffix(_NEW_SUFFIX)
        descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, MAGIC)
            hidden.rename(path)
            sync_folder(self._folder)
        except OSError:
            os.close(descriptor)
            hidden.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise
        self._descriptor = self._locks[segment_id] = descriptor
        self.current = Segment(path, segment_id, created_us, len(MAGIC))

    def _abandon(self, segment: Segment) -> None:
        """Leave a segment whose write failed: what the kernel holds of it after that is not to be trusted."""
        try:
            os.ftruncate(self._descriptor, segment.safe_bytes)
        except OSError as error:
            # The torn end is not read: records() stops at the first that is not whole, or at safe_bytes.
            _LOG.warning("log_not_cut", segment=segment.path.name, error=str(error))
        empty = segment.safe_bytes == len(MAGIC)
        self._leave(segment, keep=not empty)
        if empty:
            segment.path.unlink(missing_ok=True)
            os.close(self._locks.pop(segment.id))

    def _let_go(self, segment: Segment) -> None:
        with self._moving:
            self.sealed.remove(segment)
        os.close(self._locks.pop(segment.id))

    def _leave(self, segment: Segment, *, keep: bool) -> None:
        with self._moving:
            self.current = None
            if keep:
                self.sealed.append(segment)

    def _find(self, suffix: str) -> list[Segment]:
        found = map(_segment_at, sorted(self._folder.glob(f"*{suffix}")))
        return [segment for segment in found if segment is not None]


def _segment_at(path: Path) -> Segment | None:
    """Return the segment of a file; None for a file that is none, or is gone."""
    created, _, segment_id = path.stem.partition("-")
    if not (created.isdecimal() and segment_id):
        return None
    try:
        return Segment(path, segment_id, int(created), path.stat().st_size)
    except FileNotFoundError:
        return None


def _lock(path: Path) -> int | None:
    """Return a descriptor that holds a segment's lock; None when another process has it, or has finished it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists():
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None


def sync_folder(folder: Path) -> None:
    """Make what was renamed into a folder survive a loss of power; raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
