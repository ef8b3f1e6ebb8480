"""Uploads of content to the registry's store."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import grpc
from interlock.registry.v1 import artifact_pb2, artifact_service_pb2_grpc
from interlock.registry.v1 import artifact_service_pb2 as pb

from interlock_sdk.channel import Caller
from interlock_sdk.errors import CallError

CHUNK_BYTES = 1024 * 1024

# How often in a row an upload may be cut off without a single new byte stored before it is given up.
_STALLED_ATTEMPTS = 4
_FIRST_PAUSE_S = 0.2
_RESUMABLE_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)

# Called with the bytes that have been sent and the bytes in all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class FileToUpload:
    """A file with its digest, SHA-256 in hexadecimal, and size."""

    path: Path
    digest: str
    size_bytes: int


async def hash_file(path: Path) -> FileToUpload:
    """Reads a file once to learn its digest. Raises ValueError when it is empty."""
    digest, size_bytes = await asyncio.to_thread(_digest_and_size, path)
    if size_bytes == 0:
        raise ValueError(f"{path.name}: want at least 1 byte, got an empty file")
    return FileToUpload(path, digest, size_bytes)


class Artifacts:
    """Content in the registry's store, by its digest."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = artifact_service_pb2_grpc.ArtifactServiceStub(caller.channel)

    async def get(self, digest: str) -> artifact_pb2.Artifact | None:
        """Tells what is stored under a digest, complete or not; None when nothing is."""
        request = pb.GetArtifactRequest(name=f"artifacts/{digest}")
        try:
            return (await self._caller.call(self._stub.GetArtifact, request)).artifact
        except CallError as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                return None
            raise

    async def upload(self, path: Path, *, on_progress: Progress | None = None) -> artifact_pb2.Artifact:
        """Uploads a file, unless its content is there already; an upload that is cut off goes on where it stopped.

        Raises:
            CallError: the registry refused it, or no byte got through several times in a row.
            ValueError: the file is empty.
        """
        file, report = await hash_file(path), on_progress or _report_nothing
        attempt, reached_bytes = 0, -1
        told: CallError | None = None
        while True:
            try:
                stored = await self._stored(file)
                if stored.received_bytes > reached_bytes:
                    attempt, reached_bytes = 0, stored.received_bytes
                if not stored.complete:
                    stored = await self._send(file, stored.received_bytes, report)
            except CallError as error:
                attempt += 1
                told = told if told and _is_clients_own(error) else error
                if not _is_resumable(error) or attempt >= _STALLED_ATTEMPTS:
                    raise told from None
                await asyncio.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1))
            else:
                report(file.size_bytes, file.size_bytes)
                return stored

    async def _stored(self, file: FileToUpload) -> artifact_pb2.Artifact:
        return await self.get(file.digest) or artifact_pb2.Artifact(name=f"artifacts/{file.digest}")

    async def _send(self, file: FileToUpload, offset_bytes: int, report: Progress) -> artifact_pb2.Artifact:
        # The file is opened and closed here: a refused call leaves the generator behind wherever it happens to be.
        with _open_at(file.path, offset_bytes) as stream:
            # Without a time limit: the stream ends by itself when nothing moves.
            call = self._stub.UploadArtifact(_messages(file, offset_bytes, stream, report))
            return (await self._caller.answer(call)).artifact


def _is_resumable(error: CallError) -> bool:
    # A wrong offset means that somebody else uploads the same content; asking again tells how far they are.
    return error.code in _RESUMABLE_CODES or error.reason == "WRONG_OFFSET" or _is_clients_own(error)


def _is_clients_own(error: CallError) -> bool:
    # grpc.aio may say INTERNAL of a stream that the service refused while it was writing; the service's own has a reason.
    return error.code is grpc.StatusCode.INTERNAL and not error.reason


def _report_nothing(_sent_bytes: int, _size_bytes: int) -> None:
    pass


def _digest_and_size(path: Path) -> tuple[str, int]:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return digest, stream.tell()


async def _messages(
    file: FileToUpload, offset_bytes: int, stream: BinaryIO, report: Progress
) -> AsyncIterator[pb.UploadArtifactRequest]:
    start = pb.UploadStart(digest=file.digest, size_bytes=file.size_bytes, offset_bytes=offset_bytes)
    yield pb.UploadArtifactRequest(start=start)
    sent_bytes = offset_bytes
    while chunk := await asyncio.to_thread(stream.read, CHUNK_BYTES):
        yield pb.UploadArtifactRequest(chunk=chunk)
        sent_bytes += len(chunk)
        report(sent_bytes, file.size_bytes)


def _open_at(path: Path, offset_bytes: int) -> BinaryIO:
    stream = path.open("rb")
    stream.seek(offset_bytes)
    return stream
