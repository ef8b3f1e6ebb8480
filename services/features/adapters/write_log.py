"""The history's write-ahead log: records in segment files, each safe on disk before it is reported so.

A segment is `<created, Unix microseconds>-<id>.log`: eight bytes that say what it is, then records of a length and a
CRC-32 (4 bytes each, little-endian) and the payload. What a crash left half-written at the end is not read. Nothing here
is asynchronous: one thread appends, and others read what has been reported safe.
"""

import os
import threading
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from struct import Struct
from typing import Final

import structlog

MAGIC: Final = b"ILHIST1\n"
LOG_SUFFIX: Final = ".log"
DONE_SUFFIX: Final = ".done"
_HEAD: Final = Struct("<II")
_LOG: Final = structlog.get_logger(part="history")


@dataclass(slots=True)
class Segment:
    """One file of the log; `safe_bytes` of it are on disk for good, whatever is behind them."""

    path: Path
    id: str
    created_us: int
    safe_bytes: int

    @classmethod
    def at(cls, path: Path) -> "Segment | None":
        """Return the segment of a file, None for a file that is none."""
        created, _, segment_id = path.stem.partition("-")
        if not (created.isdecimal() and segment_id):
            return None
        return cls(path, segment_id, int(created), path.stat().st_size)

    def records(self) -> Iterator[bytes]:
        """Yield the payloads that are whole, up to what was safe when this was called."""
        end = self.safe_bytes
        with self.path.open("rb") as file:
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


class WriteLog:
    """The segments of one folder: one is appended to, the others are sealed and wait to become Parquet."""

    def __init__(self, folder: Path, clock_us: Callable[[], int]) -> None:
        self._folder = folder
        self._clock_us = clock_us
        self._descriptor = -1
        # Moves a segment from one list to the other in one step, as the event loop sees it.
        self._moving = threading.Lock()
        self.current: Segment | None = None
        self.sealed: list[Segment] = []

    def open(self) -> None:
        """Find what an earlier process left; nothing is appended to an old segment."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.sealed = self._find(LOG_SUFFIX)

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
            os.close(self._descriptor)
            self._leave(self.current, keep=True)

    def finish(self, segment: Segment) -> None:
        """Take note that a sealed segment is Parquet."""
        done = segment.path.with_suffix(DONE_SUFFIX)
        segment.path.rename(done)
        with self._moving:
            self.sealed.remove(segment)

    def unfinished(self) -> list[Segment]:
        """Return the segments that are not Parquet yet, the oldest first, each as long as it is now."""
        with self._moving:
            current = [] if self.current is None else [self.current]
            return [replace(segment) for segment in [*self.sealed, *current]]

    def _begin(self) -> None:
        created_us = self._clock_us()
        segment_id = uuid.uuid4().hex
        path = self._folder / f"{created_us:020d}-{segment_id}{LOG_SUFFIX}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, MAGIC)
            _sync_folder(self._folder)
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        self._descriptor = descriptor
        self.current = Segment(path, segment_id, created_us, len(MAGIC))

    def _abandon(self, segment: Segment) -> None:
        """Leave a segment whose write failed: what the kernel holds of it after that is not to be trusted."""
        try:
            os.ftruncate(self._descriptor, segment.safe_bytes)
        except OSError as error:
            # The torn end is not read: records() stops at the first that is not whole, or at safe_bytes.
            _LOG.warning("log_not_cut", segment=segment.path.name, error=str(error))
        os.close(self._descriptor)
        empty = segment.safe_bytes == len(MAGIC)
        self._leave(segment, keep=not empty)
        if empty:
            segment.path.unlink(missing_ok=True)

    def _leave(self, segment: Segment, *, keep: bool) -> None:
        with self._moving:
            self.current = None
            if keep:
                self.sealed.append(segment)

    def _find(self, suffix: str) -> list[Segment]:
        found = map(Segment.at, sorted(self._folder.glob(f"*{suffix}")))
        return [segment for segment in found if segment is not None]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
