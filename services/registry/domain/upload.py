"""An upload of content: what may be sent in which order, and what is checked."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from services.common.errors import OutOfRange, Violation
from services.common.refusals import InvalidRequest, ResourceNotFound
from services.common.text_check import check_digest
from services.registry.domain.failure import ArtifactIncomplete
from services.registry.domain.ports import ArtifactStore, StoredArtifact

SIZE_LIMIT_BYTES: Final = 16 * 1024**3
CHUNK_LIMIT_BYTES: Final = 4 * 1024**2


@dataclass(frozen=True, slots=True)
class UploadStart:
    """Announces content: its digest and whole size, and where the first chunk begins."""

    digest: str
    size_bytes: int
    offset_bytes: int


def check_start(start: UploadStart) -> None:
    """Raise InvalidRequest with everything that is wrong with an announcement."""
    wrong = list(check_digest(start.digest, "start.digest"))
    if not 1 <= start.size_bytes <= SIZE_LIMIT_BYTES:
        wrong.append(Violation("start.size_bytes", f"want 1 to {SIZE_LIMIT_BYTES}, got {start.size_bytes}"))
    if start.offset_bytes < 0:
        wrong.append(Violation("start.offset_bytes", f"want at least 0, got {start.offset_bytes}"))
    if wrong:
        raise InvalidRequest(wrong)


async def receive(artifacts: ArtifactStore, start: UploadStart, chunks: AsyncIterator[bytes]) -> StoredArtifact:
    """Take the chunks of an upload and return what is stored then; complete content is answered at once.

    A stream that ends early leaves what came, to be gone on with.
    """
    check_start(start)
    found = await artifacts.find(start.digest)
    if found is not None and found.complete:
        return found
    async with artifacts.upload(start.digest, start.size_bytes, start.offset_bytes) as part:
        async for chunk in chunks:
            _check_chunk(len(chunk), start.size_bytes - part.received_bytes)
            await part.append(chunk)
        received_bytes = part.received_bytes
        if received_bytes == start.size_bytes:
            await part.publish()
    stored = await artifacts.find(start.digest)
    return stored or StoredArtifact(start.digest, start.size_bytes, received_bytes, False, None)


def _check_chunk(size_bytes: int, room_bytes: int) -> None:
    if not 1 <= size_bytes <= CHUNK_LIMIT_BYTES:
        raise InvalidRequest([Violation("chunk", f"want 1 to {CHUNK_LIMIT_BYTES} bytes, got {size_bytes}")])
    if size_bytes > room_bytes:
        want = f"want at most the {room_bytes} bytes that are left of the announced size, got {size_bytes}"
        raise InvalidRequest([Violation("chunk", want)])


async def require_artifact(artifacts: ArtifactStore, digest: str) -> StoredArtifact:
    """Return what is stored of some content; raises ResourceNotFound."""
    found = await artifacts.find(digest)
    if found is None:
        raise ResourceNotFound(f"artifacts/{digest}")
    return found


async def artifact_sizes(artifacts: ArtifactStore, digests: Sequence[str]) -> dict[str, int]:
    """Return the sizes of complete content in bytes; raises ArtifactIncomplete that names what is missing."""
    found = {digest: await artifacts.find(digest) for digest in dict.fromkeys(digests)}
    missing = [digest for digest, stored in found.items() if stored is None or not stored.complete]
    if missing:
        raise ArtifactIncomplete(missing)
    return {digest: stored.size_bytes for digest, stored in found.items() if stored is not None}


async def download(artifacts: ArtifactStore, digest: str, offset_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield complete content from an offset on."""
    if offset_bytes < 0:
        raise InvalidRequest([Violation("offset_bytes", f"want at least 0, got {offset_bytes}")])
    stored = await artifacts.find(digest)
    if stored is not None and stored.complete and offset_bytes > stored.size_bytes:
        raise OutOfRange(
            f"offset_bytes: want 0 to {stored.size_bytes}, got {offset_bytes}",
            reason="INVALID_FIELD",
            metadata={"size_bytes": str(stored.size_bytes)},
        )
    async with aclosing(artifacts.read(digest, offset_bytes)) as chunks:
        async for chunk in chunks:
            yield chunk
