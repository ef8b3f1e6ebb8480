"""Files of uploads that are under way: locked while they are written, durable, and left behind for a later stream."""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from services.registry.adapters.blocking import in_thread
from services.registry.domain.failure import DigestMismatch, UploadTakenOver

_SYNC_EVERY_BYTES: Final = 16 * 1024**2
_MODE: Final = 0o600

Publish = Callable[[Path, str], Awaitable[None]]


class LockedPart:
    """One upload's file, open and locked against every other process; see `ports.PartFile`."""

    def __init__(self, path: Path, descriptor: int, digest: str, publish: Publish) -> None:
        self.path = path
        self._descriptor = descriptor
        self._digest = digest
        self._publish = publish
        self._busy = asyncio.Lock()
        self._closed = False
        self._received_bytes = os.fstat(descriptor).st_size
        self._synced_bytes = self._received_bytes

    @property
    def received_bytes(self) -> int:
        """Bytes that are there."""
        return self._received_bytes

    async def restart(self) -> None:
        """Begin anew."""
        await in_thread(os.ftruncate, self._descriptor, 0)
        self._received_bytes = self._synced_bytes = 0

    async def append(self, chunk: bytes) -> None:
        """Write the next bytes; StorageFull when there is no room, UploadTakenOver when a later stream goes on."""
        async with self._busy:
            self._require_open()
            await in_thread(self._write, chunk)

    async def publish(self) -> None:
        """Check the digest of the whole and make the content complete; DigestMismatch throws away what came."""
        async with self._busy:
            self._require_open()
            await in_thread(os.fsync, self._descriptor)
            found = await in_thread(file_digest, self.path)
            if found != self._digest:
                await in_thread(self.path.unlink)
                raise DigestMismatch(self._digest, f"want content with the SHA-256 {self._digest}, got {found}")
            await self._publish(self.path, self._digest)

    async def close(self) -> None:
        """Let go of the file once nobody writes to it, and keep what came."""
        async with self._busy:
            if not self._closed:
                self._closed = True
                os.close(self._descriptor)

    def _require_open(self) -> None:
        if self._closed:
            raise UploadTakenOver(self._digest)

    def _write(self, chunk: bytes) -> None:
        left = memoryview(chunk)
        while left:
            count = os.pwrite(self._descriptor, left, self._received_bytes)
            self._received_bytes += count
            left = left[count:]
        if self._received_bytes - self._synced_bytes >= _SYNC_EVERY_BYTES:
            os.fsync(self._descriptor)
            self._synced_bytes = self._received_bytes


def part_path(folder: Path, digest: str, size_bytes: int) -> Path:
    """Return where the upload of some content goes on; the name says how much was announced."""
    return folder / f"{digest}-{size_bytes}.part"


def private_path(folder: Path, digest: str) -> Path:
    """Return a place for an upload beside another one of the same content; nobody goes on with it."""
    return folder / f"{digest}-{uuid.uuid4().hex}.private"


def find_part(folder: Path, digest: str) -> tuple[Path, int] | None:
    """Return the upload of some content that was begun, and how much it announced; None when there is none."""
    for path in sorted(folder.glob(f"{digest}-*.part")):
        return path, int(path.stem.rpartition("-")[2])
    return None


def lock_part(path: Path, digest: str, publish: Publish) -> LockedPart | None:
    """Open and lock a part file, made if need be; None when another process or stream holds it."""
    descriptor = _lock(path)
    return None if descriptor is None else LockedPart(path, descriptor, digest, publish)


def sweep_parts(folder: Path, older_than_s: float, now_s: float) -> None:
    """Remove uploads that nobody has gone on with for so long."""
    for path in [*folder.glob("*.part"), *folder.glob("*.private")]:
        with contextlib.suppress(FileNotFoundError):  # published meanwhile
            if now_s - path.stat().st_mtime > older_than_s and (descriptor := _lock(path)) is not None:
                path.unlink(missing_ok=True)
                os.close(descriptor)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lock(path: Path) -> int | None:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if _is_still_there(path, descriptor):
            return descriptor
        # Published or thrown away between open and lock.
        os.close(descriptor)


def _is_still_there(path: Path, descriptor: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False
