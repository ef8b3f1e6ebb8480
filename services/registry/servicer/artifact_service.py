"""ArtifactService: content up and down."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from interlock.registry.v1 import artifact_service_pb2 as pb

from services.common.call import Call
from services.registry.convert.audit import artifact_to_proto
from services.registry.convert.upload import chunk_of, digest_of, start_of, too_quiet
from services.registry.domain.ports import ArtifactStore
from services.registry.domain.upload import download, receive, require_artifact


class ArtifactServicer:
    """One method for each RPC of ArtifactService."""

    def __init__(self, artifacts: ArtifactStore, *, idle_timeout_s: float) -> None:
        self._artifacts = artifacts
        self._idle_timeout_s = idle_timeout_s

    async def UploadArtifact(
        self, requests: AsyncIterator[pb.UploadArtifactRequest], call: Call
    ) -> pb.UploadArtifactResponse:
        """Take content, from the start or from where an upload was cut off."""
        messages = self._not_too_quiet(requests)
        start = start_of(await anext(messages, None))
        chunks = (chunk_of(message) async for message in messages)
        stored = await receive(self._artifacts, start, chunks)
        return pb.UploadArtifactResponse(artifact=artifact_to_proto(stored))

    async def GetArtifact(self, request: pb.GetArtifactRequest, call: Call) -> pb.GetArtifactResponse:
        """Tell what is stored, complete or not."""
        stored = await require_artifact(self._artifacts, digest_of(request.name))
        return pb.GetArtifactResponse(artifact=artifact_to_proto(stored))

    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, call: Call
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        """Give content from an offset on."""
        content = download(self._artifacts, digest_of(request.name), request.offset_bytes)
        async with aclosing(content) as chunks:
            async for chunk in chunks:
                yield pb.DownloadArtifactResponse(chunk=chunk)

    async def _not_too_quiet(
        self, requests: AsyncIterator[pb.UploadArtifactRequest]
    ) -> AsyncIterator[pb.UploadArtifactRequest]:
        while True:
            try:
                async with asyncio.timeout(self._idle_timeout_s):
                    message = await anext(requests, None)
            except TimeoutError:
                raise too_quiet(self._idle_timeout_s) from None
            if message is None:
                return
            yield message
