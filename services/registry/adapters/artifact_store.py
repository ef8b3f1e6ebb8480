"""Content by its digest on any file system that fsspec knows.

Uploads grow in a local folder and become content in one step: a rename on a local store, one put on any other. Names
in the store are digests and nothing else, so no caller's text is ever a path.
"""

import asyncio
import hashlib
import os
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import fsspec
import structlog
from fsspec.implementations.local import LocalFileSystem
from prometheus_client import CollectorRegistry, Counter

from services.common.errors import Violation
from services.common.refusals import InvalidRequest, ResourceNotFound
from services.common.storage_failure import StorageFull
from services.registry.adapters.blocking import in_thread
from services.registry.adapters.part_file import (
    LockedPart,
    find_part,
    lock_part,
    part_path,
    private_path,
    sweep_parts,
)
from services.registry.domain.failure import DigestMismatch, UploadBusy, WrongOffset
from services.registry.domain.ports import PartFile, StoredArtifact

_LOG: Final = structlog.get_logger(part="artifacts")
_CHUNK_BYTES: Final = 1024**2
_CORRUPT: Final = ".corrupt"


class FsspecArtifactStore:
    """See `ports.ArtifactStore`."""

    def __init__(self, url: str, uploads: Path, *, least_free_share: float, registry: CollectorRegistry) -> None:
        """Open the store at an fsspec URL; `uploads` is where uploads to a remote store grow.

        `least_free_share` of the disk (0 to 1) is kept free: uploads that would go below are refused.
        """
        self._fs: Any
        self._fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        self._local = isinstance(self._fs, LocalFileSystem)
        self._root = f"{root}/sha256"
        # A rename works inside one file system only.
        self._uploads = Path(root) / "uploads" if self._local else uploads
        self._least_free_share = least_free_share
        self._opening = asyncio.Lock()
        self._open: dict[str, LockedPart] = {}
        self._corrupt = Counter(
            "interlock_registry_corrupt_artifacts", "Stored content that no longer had its digest.", registry=registry
        )

    async def prepare(self) -> None:
        """Make the folders."""
        await in_thread(lambda: self._uploads.mkdir(parents=True, exist_ok=True))
        await in_thread(lambda: self._fs.makedirs(self._root, exist_ok=True))

    async def find(self, digest: str) -> StoredArtifact | None:
        """Return what is stored, complete or not."""
        return await in_thread(self._find, digest)

    @asynccontextmanager
    async def upload(self, digest: str, size_bytes: int, offset_bytes: int) -> AsyncIterator[PartFile]:
        """Open an upload at an offset: 0 begins anew; WrongOffset when it stopped elsewhere.

        A second upload of the same content from 0 on grows in a file of its own; one that goes on takes over.
        """
        async with self._opening:
            self._refuse_full(size_bytes - offset_bytes)
            part = await self._open_part(digest, size_bytes, offset_bytes)
        try:
            yield part
        finally:
            await part.close()
            if self._open.get(digest) is part:
                del self._open[digest]
            if part.path.suffix == ".private":
                part.path.unlink(missing_ok=True)

    async def read(self, digest: str, offset_bytes: int) -> AsyncGenerator[bytes, None]:
        """Yield complete content from an offset on; DigestMismatch before the end of a whole read that is corrupt."""
        file = await in_thread(self._open_content, digest)
        try:
            await in_thread(file.seek, offset_bytes)
            hasher = hashlib.sha256()
            held = b""
            while chunk := await in_thread(file.read, _CHUNK_BYTES):
                hasher.update(chunk)
                if held:
                    yield held
                held = chunk
            # The last chunk waits for the verdict, so that nobody ever holds all of something corrupt.
            if offset_bytes == 0 and hasher.hexdigest() != digest:
                await self._quarantine(digest, hasher.hexdigest())
            if held:
                yield held
        finally:
            await in_thread(file.close)

    async def sweep(self, older_than_s: float) -> None:
        """Remove uploads that nobody has gone on with for so long."""
        await in_thread(sweep_parts, self._uploads, older_than_s, time.time())

    async def _open_part(self, digest: str, size_bytes: int, offset_bytes: int) -> LockedPart:
        holder = self._open.get(digest)
        if holder is not None and offset_bytes:
            await holder.close()
        begun = await in_thread(find_part, self._uploads, digest)
        if begun is None and offset_bytes:
            raise WrongOffset(offset_bytes, 0)
        if begun is not None and begun[1] != size_bytes:
            await self._leave_other_size(begun, offset_bytes)
        path = part_path(self._uploads, digest, size_bytes)
        part = await in_thread(lock_part, path, digest, self._publish)
        if part is None:
            if offset_bytes:
                raise UploadBusy(digest)
            return await self._private_part(digest)
        try:
            await self._place(part, offset_bytes)
        except BaseException:
            await part.close()
            raise
        self._open[digest] = part
        return part

    async def _leave_other_size(self, begun: tuple[Path, int], offset_bytes: int) -> None:
        path, announced_bytes = begun
        if offset_bytes:
            want = f"want {announced_bytes}, as announced before; or an offset of 0 to begin anew"
            raise InvalidRequest([Violation("start.size_bytes", want)])
        await in_thread(lambda: path.unlink(missing_ok=True))

    async def _private_part(self, digest: str) -> LockedPart:
        part = await in_thread(lock_part, private_path(self._uploads, digest), digest, self._publish)
        if part is None:
            raise UploadBusy(digest)
        return part

    @staticmethod
    async def _place(part: LockedPart, offset_bytes: int) -> None:
        if offset_bytes not in (0, part.received_bytes):
            raise WrongOffset(offset_bytes, part.received_bytes)
        if offset_bytes == 0:
            await part.restart()

    def _refuse_full(self, more_bytes: int) -> None:
        usage = shutil.disk_usage(self._uploads)
        if usage.free - more_bytes < usage.total * self._least_free_share:
            raise StorageFull("registry")

    async def _publish(self, part: Path, digest: str) -> None:
        await in_thread(self._move_in, part, digest)

    def _move_in(self, part: Path, digest: str) -> None:
        path = self._path(digest)
        if self._local:
            part.replace(path)
            _sync_folder(Path(self._root))
        else:
            self._fs.put_file(str(part), path)
            part.unlink(missing_ok=True)
        if self._fs.exists(path + _CORRUPT):
            self._fs.rm_file(path + _CORRUPT)

    def _path(self, digest: str) -> str:
        return f"{self._root}/{digest}"

    def _find(self, digest: str) -> StoredArtifact | None:
        path = self._path(digest)
        try:
            size_bytes = self._fs.info(path)["size"]
            return StoredArtifact(digest, size_bytes, size_bytes, True, self._fs.modified(path))
        except FileNotFoundError:
            return self._find_begun(digest)

    def _find_begun(self, digest: str) -> StoredArtifact | None:
        begun = find_part(self._uploads, digest)
        try:
            return None if begun is None else StoredArtifact(digest, begun[1], begun[0].stat().st_size, False, None)
        except FileNotFoundError:
            # Published a moment ago, or thrown away.
            return None

    def _open_content(self, digest: str) -> Any:
        path = self._path(digest)
        try:
            return self._fs.open(path, "rb")
        except FileNotFoundError:
            if self._fs.exists(path + _CORRUPT):
                raise _corrupt(digest) from None
            raise ResourceNotFound(f"artifacts/{digest}") from None

    async def _quarantine(self, digest: str, found: str) -> None:
        """Put corrupt content aside, so that the same content can be uploaded again."""
        path = self._path(digest)
        _LOG.error("artifact_corrupt", digest=digest, found=found)
        self._corrupt.inc()
        await in_thread(lambda: self._fs.mv(path, path + _CORRUPT))
        raise _corrupt(digest)


def _corrupt(digest: str) -> DigestMismatch:
    return DigestMismatch(digest, f"what is stored of {digest} no longer has its digest; upload it again")


def _sync_folder(folder: Path) -> None:
    # The rename itself is only durable once the folder is.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
