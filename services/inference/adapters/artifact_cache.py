"""Artifacts on the local disk, by their SHA-256, shared between versions.

A file appears under its digest only when it is whole and right: it is written beside, synced, checked and renamed. A
download that was cut off goes on where it stopped. Names of models never become paths.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from services.inference.domain.ports import LoadFailure, ModelBundle
from services.inference.domain.version import FileSpec

_CHUNK_BYTES: Final = 1 << 20
_DIGEST_CHARS: Final = frozenset("0123456789abcdef")


class Downloads(Protocol):
    """Where artifacts come from."""

    def download(self, digest: str, offset_bytes: int) -> AsyncGenerator[bytes, None]:
        """Yield the content from an offset on.

        Raises `ArtifactsUnavailable` when it cannot be had now, `LoadFailure` when it never can.
        """


class ArtifactCache:
    """Verified copies of artifacts under one folder."""

    def __init__(self, folder: Path, downloads: Downloads) -> None:
        self._blobs = folder / "sha256"
        self._partial = folder / "partial"
        self._bundles = folder / "bundles"
        self._downloads = downloads
        self._locks: dict[str, asyncio.Lock] = {}
        for path in (self._blobs, self._partial, self._bundles):
            path.mkdir(parents=True, exist_ok=True)

    async def fetch(self, files: Sequence[FileSpec]) -> ModelBundle:
        """Return the files of a version, fetched where they are not here yet."""
        for file in files:
            await self._ensure(file)
        if len(files) == 1:
            blob = self._blob(files[0].digest)
            return ModelBundle(blob.parent, {files[0].path: blob})
        return await asyncio.to_thread(self._lay_out, files)

    async def discard(self, digest: str) -> None:
        """Throw a copy away, and every layout that holds it."""
        await asyncio.to_thread(self._discard, digest)

    async def prune(self, keep: Collection[str], unused_s: float) -> None:
        """Remove what is not in `keep` and was not used for so long."""
        await asyncio.to_thread(self._prune, frozenset(keep), unused_s)

    async def _ensure(self, file: FileSpec) -> None:
        blob = self._blob(file.digest)
        async with self._locks.setdefault(file.digest, asyncio.Lock()):
            if blob.exists():
                os.utime(blob)
                return
            # What came was something else: once is an accident on the way, twice is what is stored.
            if not await self._download(file, blob) and not await self._download(file, blob):
                raise LoadFailure(
                    f"file {file.path} is corrupt in the registry: its bytes do not have the SHA-256 {file.digest}"
                )

    async def _download(self, file: FileSpec, blob: Path) -> bool:
        """Fetch one file; return whether its digest was right. What is wrong is thrown away."""
        partial = await asyncio.to_thread(_open_partial, self._partial, file.digest)
        with partial.handle:
            digest = await asyncio.to_thread(_hash_so_far, partial.handle)
            if not file.size_bytes or partial.offset < file.size_bytes:
                await self._append_rest(file.digest, partial, digest)
            if digest.hexdigest() != file.digest:
                partial.path.unlink(missing_ok=True)
                return False
            await asyncio.to_thread(_publish, partial.handle, partial.path, blob)
        return True

    async def _append_rest(self, name: str, partial: "_Partial", digest: "hashlib._Hash") -> None:
        async with contextlib.aclosing(self._downloads.download(name, partial.offset)) as chunks:
            async for chunk in chunks:
                await asyncio.to_thread(_append, partial.handle, digest, chunk)

    def _blob(self, digest: str) -> Path:
        if len(digest) != 64 or not _DIGEST_CHARS.issuperset(digest):
            raise LoadFailure("a file of the version has no valid SHA-256")
        return self._blobs / digest[:2] / digest

    def _lay_out(self, files: Sequence[FileSpec]) -> ModelBundle:
        """Copy the files of a version into a folder of their own: weights are found by their path beside the graph.

        Copies and not links: a model that reaches out of its files through a link is refused when it is loaded.
        """
        name = hashlib.sha256("\n".join(f"{file.path} {file.digest}" for file in files).encode()).hexdigest()
        root = self._bundles / name
        paths = {file.path: root / _relative(file.path) for file in files}
        if root.exists():
            os.utime(root)
            return ModelBundle(root, paths)
        draft = self._bundles / f"{name}.{os.getpid()}.draft"
        shutil.rmtree(draft, ignore_errors=True)
        for file in files:
            target = draft / _relative(file.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._blob(file.digest), target)
        try:
            draft.rename(root)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)  # another process was first
        return ModelBundle(root, paths)

    def _discard(self, digest: str) -> None:
        self._blob(digest).unlink(missing_ok=True)
        for bundle in self._bundles.iterdir():
            shutil.rmtree(bundle, ignore_errors=True)

    def _prune(self, keep: frozenset[str], unused_s: float) -> None:
        oldest = time.time() - unused_s  # file times are wall-clock times
        for blob in self._blobs.glob("??/*"):
            if blob.name not in keep and blob.stat().st_mtime < oldest:
                blob.unlink(missing_ok=True)
        for left in (*self._partial.iterdir(), *self._bundles.iterdir()):
            if left.stat().st_mtime < oldest:
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


class _Partial:
    """A download under way, locked against other processes that share the folder."""

    __slots__ = ("handle", "offset", "path")

    def __init__(self, path: Path, handle: BinaryIO) -> None:
        self.path = path
        self.handle = handle
        self.offset = handle.seek(0, os.SEEK_END)


def _open_partial(folder: Path, digest: str) -> _Partial:
    """Open what is there of a download, or a private file while another process downloads the same."""
    path = folder / digest
    handle = path.open("a+b")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        path = folder / f"{digest}.{os.getpid()}"
        handle = path.open("w+b")
    return _Partial(path, handle)


def _hash_so_far(handle: BinaryIO) -> "hashlib._Hash":
    digest = hashlib.sha256()
    handle.seek(0)
    while chunk := handle.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest


def _append(handle: BinaryIO, digest: "hashlib._Hash", chunk: bytes) -> None:
    handle.write(chunk)
    digest.update(chunk)


def _publish(handle: BinaryIO, partial: Path, blob: Path) -> None:
    handle.flush()
    os.fsync(handle.fileno())
    blob.parent.mkdir(exist_ok=True)
    partial.rename(blob)
    folder = os.open(blob.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _relative(path: str) -> Path:
    """Return a path that stays inside its folder; the registry checks it too, and this is where it would hurt."""
    relative = Path(path)
    if not path or relative.is_absolute() or ".." in relative.parts:
        raise LoadFailure("a file of the version has a path that leaves its folder")
    return relative
