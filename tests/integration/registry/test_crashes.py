"""What is left after the process, the disk or the database has gone in the middle of something."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from interlock.registry.v1 import artifact_service_pb2 as artifact_pb
from interlock.registry.v1 import registry_service_pb2 as pb

from tests.fakes.ports import free_offset
from tests.fakes.registry_process import registry_process
from tests.fakes.registry_service import Registry, refused, upload_messages

CHUNK_BYTES = 64 * 1024
ROOM_BYTES = 600 * 1024


async def audit(registry: Registry) -> pb.VerifyAuditLogResponse:
    return await registry.api.VerifyAuditLog(pb.VerifyAuditLogRequest(), timeout=20)


async def create_until_it_breaks(registry: Registry, prefix: str) -> list[str]:
    """Create models one after the other; the ids of those that were acknowledged."""
    acknowledged: list[str] = []
    while True:
        model = f"{prefix}-{len(acknowledged)}"
        try:
            await registry.create_model(model)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return acknowledged
            raise
        acknowledged.append(model)


async def models(registry: Registry) -> set[str]:
    found: set[str] = set()
    token = ""
    while True:
        page = await registry.api.ListModels(pb.ListModelsRequest(page_size=1_000, page_token=token), timeout=20)
        found |= {model.name.removeprefix("models/") for model in page.models}
        token = page.next_page_token
        if not token:
            return found


async def received_bytes(registry: Registry, digest: str) -> int:
    request = artifact_pb.GetArtifactRequest(name=f"artifacts/{digest}")
    try:
        return (await registry.artifacts.GetArtifact(request)).artifact.received_bytes
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return 0
        raise


async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    offset = free_offset()
    kept: set[str] = set()
    for run in range(3):
        async with registry_process(tmp_path, offset) as running:
            assert kept <= await models(running.registry)
            assert (await audit(running.registry)).intact
            writing = [
                asyncio.ensure_future(create_until_it_breaks(running.registry, f"m{run}-{lane}")) for lane in range(4)
            ]
            await asyncio.sleep(0.3 + 0.1 * run)
            await running.kill()
            for acknowledged in await asyncio.gather(*writing):
                kept.update(acknowledged)
    assert kept
    async with registry_process(tmp_path, offset) as running:
        assert kept <= await models(running.registry)
        assert (await audit(running.registry)).intact
        assert await running.terminate() == 0


async def test_an_upload_goes_on_after_a_kill(tmp_path: Path) -> None:
    content = os.urandom(40 * CHUNK_BYTES)
    digest = hashlib.sha256(content).hexdigest()
    offset = free_offset()
    async with registry_process(tmp_path, offset) as running:

        async def endless() -> AsyncIterator[artifact_pb.UploadArtifactRequest]:
            for message in upload_messages(content, CHUNK_BYTES)[:25]:
                yield message
            await asyncio.Event().wait()

        call = running.registry.artifacts.UploadArtifact(endless())
        async with asyncio.timeout(10):
            while not await received_bytes(running.registry, digest):
                await asyncio.sleep(0.01)
        await running.kill()
        with pytest.raises(grpc.aio.AioRpcError):
            await call
    async with registry_process(tmp_path, offset) as running:
        half = await received_bytes(running.registry, digest)
        assert 0 < half <= 24 * CHUNK_BYTES
        rest = upload_messages(content, CHUNK_BYTES, offset=half)
        assert (await running.registry.artifacts.UploadArtifact(iter(rest))).artifact.complete
        wanted = artifact_pb.DownloadArtifactRequest(name=f"artifacts/{digest}")
        came = [message.chunk async for message in running.registry.artifacts.DownloadArtifact(wanted)]
        assert b"".join(came) == content


async def test_a_full_disk_refuses_uploads_and_nothing_else(tmp_path: Path) -> None:
    offset = free_offset()
    content = os.urandom(2 * ROOM_BYTES)
    async with registry_process(tmp_path, offset, file_limit_bytes=ROOM_BYTES) as running:
        await running.registry.upload(b"small")
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL"):
            await running.registry.upload(content, CHUNK_BYTES)
        await running.registry.create_model("fraud")
        digest = hashlib.sha256(content).hexdigest()
        assert await received_bytes(running.registry, digest) == ROOM_BYTES
    async with registry_process(tmp_path, offset) as running:
        assert (await models(running.registry)) == {"fraud"}
        rest = upload_messages(content, CHUNK_BYTES, offset=await received_bytes(running.registry, digest))
        assert (await running.registry.artifacts.UploadArtifact(iter(rest))).artifact.complete
