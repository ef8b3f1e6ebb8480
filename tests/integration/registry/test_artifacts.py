"""Content up and down: resumed, checked, and never half there."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import grpc
import pytest
from interlock.registry.v1 import artifact_service_pb2 as pb
from interlock.registry.v1.artifact_pb2 import Artifact

from tests.fakes.registry_service import (
    MODEL_BYTES,
    MODEL_DIGEST,
    Registry,
    refused,
    running_registry,
    upload_messages,
)

SERVICE = "interlock.registry.v1.ArtifactService"
INVALID = grpc.StatusCode.INVALID_ARGUMENT
MISSING = grpc.StatusCode.NOT_FOUND
LOST = grpc.StatusCode.DATA_LOSS


async def upload(registry: Registry, messages: Iterable[pb.UploadArtifactRequest]) -> Artifact:
    return (await registry.artifacts.UploadArtifact(iter(messages))).artifact


async def get(registry: Registry, digest: str) -> Artifact:
    return (await registry.artifacts.GetArtifact(pb.GetArtifactRequest(name=f"artifacts/{digest}"))).artifact


async def download(registry: Registry, digest: str, offset: int = 0) -> bytes:
    request = pb.DownloadArtifactRequest(name=f"artifacts/{digest}", offset_bytes=offset)
    return b"".join([message.chunk async for message in registry.artifacts.DownloadArtifact(request)])


def stored(registry: Registry, digest: str) -> Path:
    return registry.settings.state_dir / "registry" / "artifacts" / "sha256" / digest


def part_count(registry: Registry) -> int:
    return len(list((registry.settings.state_dir / "registry" / "artifacts" / "uploads").iterdir()))


async def cut_off(registry: Registry, messages: list[pb.UploadArtifactRequest], received_bytes: int) -> None:
    """Send some messages, see them arrive, and hang up."""
    digest = messages[0].start.digest

    async def without_end() -> AsyncIterator[pb.UploadArtifactRequest]:
        for message in messages:
            yield message
        await asyncio.Event().wait()

    call = registry.artifacts.UploadArtifact(without_end())
    await until_received(registry, digest, received_bytes)
    call.cancel()


async def until_received(registry: Registry, digest: str, received_bytes: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                if (await get(registry, digest)).received_bytes == received_bytes:
                    return
            except grpc.aio.AioRpcError:
                pass
            await asyncio.sleep(0.01)


@pytest.mark.rpc(f"{SERVICE}/UploadArtifact", "happy")
@pytest.mark.rpc(f"{SERVICE}/GetArtifact", "happy")
@pytest.mark.rpc(f"{SERVICE}/DownloadArtifact", "happy")
async def test_content_comes_back_as_it_was(registry: Registry) -> None:
    content = os.urandom(3 * 1024**2 + 17)
    digest = hashlib.sha256(content).hexdigest()
    artifact = await upload(registry, upload_messages(content, 1024**2))
    assert (artifact.name, artifact.complete) == (f"artifacts/{digest}", True)
    assert artifact.size_bytes == artifact.received_bytes == len(content)
    assert artifact.create_time.seconds > 0
    assert await get(registry, digest) == artifact
    assert await download(registry, digest) == content
    for offset in (1, 1024**2, len(content) - 1, len(content)):
        assert await download(registry, digest, offset) == content[offset:]
    assert await upload(registry, upload_messages(content)[:1]) == artifact, "what is there is answered at once"
    assert part_count(registry) == 0


@pytest.mark.rpc(f"{SERVICE}/GetArtifact", "error")
@pytest.mark.rpc(f"{SERVICE}/DownloadArtifact", "error")
async def test_what_is_not_there_is_not_found(registry: Registry) -> None:
    with refused(MISSING, "RESOURCE_NOT_FOUND"):
        await get(registry, "0" * 64)
    with refused(MISSING, "RESOURCE_NOT_FOUND"):
        await download(registry, "0" * 64)
    for bad in ("", "x", "A" * 64, "0" * 63, "../" + "0" * 61, "0" * 64 + "/..", "0" * 64 + "\n"):
        with refused(INVALID, "INVALID_NAME"):
            await get(registry, bad)
        with refused(INVALID, "INVALID_NAME"):
            await download(registry, bad)
    await registry.upload()
    with refused(grpc.StatusCode.OUT_OF_RANGE, "INVALID_FIELD"):
        await download(registry, MODEL_DIGEST, len(MODEL_BYTES) + 1)
    with refused(INVALID, "INVALID_FIELD"):
        await download(registry, MODEL_DIGEST, -1)


async def test_an_upload_goes_on_where_it_was_cut_off(registry: Registry) -> None:
    await cut_off(registry, upload_messages(MODEL_BYTES, 100)[:6], 500)
    half = await get(registry, MODEL_DIGEST)
    assert (half.complete, half.received_bytes, half.size_bytes) == (False, 500, len(MODEL_BYTES))
    with refused(MISSING, "RESOURCE_NOT_FOUND"):
        await download(registry, MODEL_DIGEST)
    with refused(INVALID, "WRONG_OFFSET") as seen:
        await upload(registry, upload_messages(MODEL_BYTES, offset=400))
    assert seen[0].metadata["received_bytes"] == "500"
    done = await upload(registry, upload_messages(MODEL_BYTES, offset=500))
    assert done.complete
    assert await download(registry, MODEL_DIGEST) == MODEL_BYTES


async def test_a_stream_that_ends_early_leaves_what_came(registry: Registry) -> None:
    half = await upload(registry, upload_messages(MODEL_BYTES, 100)[:4])
    assert (half.complete, half.received_bytes) == (False, 300)
    anew = await upload(registry, upload_messages(MODEL_BYTES))
    assert anew.complete, "0 begins anew"


@pytest.mark.rpc(f"{SERVICE}/UploadArtifact", "error")
async def test_a_wrong_upload_is_refused(registry: Registry) -> None:
    start, *chunks = upload_messages(MODEL_BYTES)
    cases: list[tuple[list[pb.UploadArtifactRequest], str]] = [
        ([], "start"),
        ([pb.UploadArtifactRequest()], "start"),
        (chunks, "start"),
        ([start, start], "chunk"),
        ([start, pb.UploadArtifactRequest()], "chunk"),
        ([start, pb.UploadArtifactRequest(chunk=b"")], "chunk"),
        ([start, pb.UploadArtifactRequest(chunk=bytes(4 * 1024**2 + 1))], "chunk"),
        ([start, *chunks, pb.UploadArtifactRequest(chunk=b"x")], "chunk"),
        (upload_messages(MODEL_BYTES, digest="../../etc/passwd"), "start.digest"),
        (upload_messages(MODEL_BYTES, digest=MODEL_DIGEST.upper()), "start.digest"),
        (upload_messages(b""), "start.size_bytes"),
        ([pb.UploadArtifactRequest(start=pb.UploadStart(digest=MODEL_DIGEST, size_bytes=2**35))], "start.size_bytes"),
        (
            [pb.UploadArtifactRequest(start=pb.UploadStart(digest=MODEL_DIGEST, size_bytes=1, offset_bytes=-1))],
            "start.offset_bytes",
        ),
    ]
    for messages, field in cases:
        with refused(INVALID, "INVALID_FIELD") as seen:
            await upload(registry, messages)
        assert set(seen[0].violations) == {field}
    with refused(INVALID, "WRONG_OFFSET"):
        await upload(registry, upload_messages(b"never begun", offset=3))


async def test_another_size_goes_on_with_nothing(registry: Registry) -> None:
    await upload(registry, upload_messages(MODEL_BYTES, 100)[:4])
    start = pb.UploadStart(digest=MODEL_DIGEST, size_bytes=10_000, offset_bytes=300)
    with refused(INVALID, "INVALID_FIELD") as seen:
        await upload(registry, [pb.UploadArtifactRequest(start=start)])
    assert set(seen[0].violations) == {"start.size_bytes"}
    start.offset_bytes = 0
    assert (await upload(registry, [pb.UploadArtifactRequest(start=start)])).size_bytes == 10_000
    assert part_count(registry) == 1


async def test_content_with_another_digest_is_thrown_away(registry: Registry) -> None:
    with refused(LOST, "DIGEST_MISMATCH"):
        await upload(registry, upload_messages(MODEL_BYTES, digest="0" * 64))
    with refused(MISSING, "RESOURCE_NOT_FOUND"):
        await get(registry, "0" * 64)
    assert part_count(registry) == 0


async def test_uploads_of_the_same_content_do_not_disturb_each_other(registry: Registry) -> None:
    content = os.urandom(512 * 1024)
    answers = await asyncio.gather(*(upload(registry, upload_messages(content, 8 * 1024)) for _ in range(8)))
    assert all(answer.complete for answer in answers)
    assert await download(registry, answers[0].name.removeprefix("artifacts/")) == content
    assert part_count(registry) == 0


async def test_a_client_that_comes_back_takes_its_upload_over(registry: Registry) -> None:
    """The old stream may be half-open for a while: the machine behind it is gone and nobody has noticed."""
    messages = upload_messages(MODEL_BYTES, 100)
    more = asyncio.Event()

    async def old_stream() -> AsyncIterator[pb.UploadArtifactRequest]:
        for message in messages[:4]:
            yield message
        await more.wait()
        yield messages[4]

    old = registry.artifacts.UploadArtifact(old_stream())
    await until_received(registry, MODEL_DIGEST, 300)
    half = await upload(registry, upload_messages(MODEL_BYTES, 100, offset=300)[:3])
    assert half.received_bytes == 500
    more.set()
    with refused(INVALID, "WRONG_OFFSET"):
        await old
    assert (await upload(registry, upload_messages(MODEL_BYTES, offset=500))).complete
    assert await download(registry, MODEL_DIGEST) == MODEL_BYTES


async def test_a_second_process_does_not_write_into_the_same_upload(registry: Registry, tmp_path: Path) -> None:
    async with running_registry(tmp_path / "two", artifact_url=registry.settings.artifacts) as other:
        started = asyncio.Event()

        async def slow() -> AsyncIterator[pb.UploadArtifactRequest]:
            messages = upload_messages(MODEL_BYTES, 100)
            for message in messages[:4]:
                yield message
            await started.wait()
            for message in messages[4:]:
                yield message

        first = registry.artifacts.UploadArtifact(slow())
        await until_received(registry, MODEL_DIGEST, 300)
        with refused(grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE"):
            await upload(other, upload_messages(MODEL_BYTES, offset=300))
        assert (await upload(other, upload_messages(MODEL_BYTES))).complete
        started.set()
        assert (await first).artifact.complete
        assert await download(other, MODEL_DIGEST) == MODEL_BYTES
        assert part_count(registry) == 0


async def test_corrupt_content_never_comes_whole_and_can_be_uploaded_again(registry: Registry) -> None:
    content = os.urandom(2 * 1024**2 + 5)
    digest = await registry.upload(content, 1024**2)
    flipped = bytearray(content)
    flipped[1024**2] ^= 1
    stored(registry, digest).write_bytes(flipped)
    request = pb.DownloadArtifactRequest(name=f"artifacts/{digest}")
    came_bytes = 0
    with refused(LOST, "DIGEST_MISMATCH"):
        async for message in registry.artifacts.DownloadArtifact(request):
            came_bytes += len(message.chunk)
    assert came_bytes < len(content)
    with refused(LOST, "DIGEST_MISMATCH"):
        await download(registry, digest)
    with refused(MISSING, "RESOURCE_NOT_FOUND"):
        await get(registry, digest)
    await registry.upload(content, 1024**2)
    assert await download(registry, digest) == content


async def test_a_truncated_file_is_corrupt(registry: Registry) -> None:
    digest = await registry.upload()
    stored(registry, digest).write_bytes(MODEL_BYTES[:-1])
    with refused(LOST, "DIGEST_MISMATCH"):
        await download(registry, digest)


async def test_a_silent_upload_ends(tmp_path: Path) -> None:
    async def silent() -> AsyncIterator[pb.UploadArtifactRequest]:
        for message in upload_messages(MODEL_BYTES, 100)[:3]:
            yield message
        await asyncio.Event().wait()

    async with running_registry(tmp_path, upload_idle_timeout_s=0.2) as registry:
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"):
            await registry.artifacts.UploadArtifact(silent())
        assert (await get(registry, MODEL_DIGEST)).received_bytes == 200


async def test_a_nearly_full_disk_takes_no_uploads_and_gives_downloads(tmp_path: Path) -> None:
    async with running_registry(tmp_path) as registry:
        await registry.upload()
    async with running_registry(tmp_path, artifact_least_free_share=0.9999) as registry:
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL"):
            await registry.upload(b"more")
        assert await download(registry, MODEL_DIGEST) == MODEL_BYTES


async def test_old_uploads_are_swept_and_live_ones_stay(tmp_path: Path) -> None:
    async with running_registry(tmp_path, upload_retention_s=0.2, housekeeping_interval_s=0.05) as registry:
        await upload(registry, upload_messages(b"old" * 100, 100)[:2])
        async with asyncio.timeout(10):
            while part_count(registry):
                await asyncio.sleep(0.02)


async def test_any_file_system_of_fsspec_will_do(tmp_path: Path) -> None:
    async with running_registry(tmp_path, artifact_url=f"memory://bucket/{tmp_path.name}") as registry:
        await upload(registry, upload_messages(MODEL_BYTES, 100)[:3])
        assert (await get(registry, MODEL_DIGEST)).received_bytes == 200
        await upload(registry, upload_messages(MODEL_BYTES, offset=200))
        artifact = await get(registry, MODEL_DIGEST)
        assert artifact.complete
        assert artifact.create_time.seconds > 0
        assert await download(registry, MODEL_DIGEST) == MODEL_BYTES
        assert await download(registry, MODEL_DIGEST, 100) == MODEL_BYTES[100:]
        assert list((tmp_path / "registry" / "uploads").iterdir()) == []
