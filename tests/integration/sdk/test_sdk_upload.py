"""Uploads that are cut off, repeated or refused."""

import hashlib
from pathlib import Path
from typing import BinaryIO

import grpc
import pytest
from google.rpc.code_pb2 import Code

from interlock_sdk import artifacts as sdk_artifacts
from interlock_sdk.client import Client
from interlock_sdk.errors import CallError
from tests.fakes.public_api import FakePublicApi

CHUNK_BYTES = 1_000
CONTENT = bytes(range(256)) * 40
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _small_chunks_and_short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk_artifacts, "CHUNK_BYTES", CHUNK_BYTES)
    monkeypatch.setattr(sdk_artifacts, "_FIRST_PAUSE_S", 0.001)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(CONTENT)
    return path


async def test_the_whole_content_arrives_and_progress_reaches_the_end(
    api: FakePublicApi, client: Client, file: Path
) -> None:
    seen: list[tuple[int, int]] = []
    artifact = await client.artifacts.upload(file, on_progress=lambda sent, size: seen.append((sent, size)))
    assert artifact.name == f"artifacts/{DIGEST}"
    assert artifact.complete
    assert api.artifacts.stored[DIGEST] == CONTENT
    assert seen[0] == (CHUNK_BYTES, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)


async def test_stored_content_is_not_sent_again(api: FakePublicApi, client: Client, file: Path) -> None:
    await client.artifacts.upload(file)
    await client.artifacts.upload(file)
    assert api.artifacts.upload_count == 1


async def test_a_cut_upload_goes_on_where_it_stopped(api: FakePublicApi, client: Client, file: Path) -> None:
    api.artifacts.cuts = [2_500, 10, 4_000]
    await client.artifacts.upload(file)
    assert api.artifacts.stored[DIGEST] == CONTENT
    assert api.artifacts.received_chunk_bytes == len(CONTENT)
    assert api.artifacts.upload_count == 4


async def test_an_upload_that_somebody_else_has_taken_further_goes_on_from_there(
    api: FakePublicApi, client: Client, file: Path
) -> None:
    api.artifacts.stored[DIGEST] = bytearray(CONTENT[:3_000])
    api.artifacts.sizes[DIGEST] = len(CONTENT)
    api.artifacts.refusals = [(Code.INVALID_ARGUMENT, "WRONG_OFFSET")]
    await client.artifacts.upload(file)
    assert api.artifacts.stored[DIGEST] == CONTENT


async def test_an_upload_of_which_nothing_arrives_is_given_up(api: FakePublicApi, client: Client, file: Path) -> None:
    api.artifacts.cuts = [0] * 100
    with pytest.raises(CallError) as caught:
        await client.artifacts.upload(file)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert api.artifacts.upload_count == 4


@pytest.mark.parametrize(
    ("code", "reason"), [(Code.DATA_LOSS, "DIGEST_MISMATCH"), (Code.RESOURCE_EXHAUSTED, "STORAGE_FULL")]
)
async def test_a_refused_upload_is_not_repeated(
    api: FakePublicApi, client: Client, file: Path, code: int, reason: str
) -> None:
    api.artifacts.refusals = [(code, reason)]
    with pytest.raises(CallError) as caught:
        await client.artifacts.upload(file)
    assert caught.value.reason == reason
    assert api.artifacts.upload_count == 1


async def test_an_empty_file_is_refused_before_any_call(api: FakePublicApi, client: Client, tmp_path: Path) -> None:
    empty = tmp_path / "empty.onnx"
    empty.touch()
    with pytest.raises(ValueError, match=r"empty\.onnx: want at least 1 byte"):
        await client.artifacts.upload(empty)
    assert api.artifacts.upload_count == 0


async def test_unknown_content_is_none(client: Client) -> None:
    assert await client.artifacts.get(DIGEST) is None


async def test_a_refused_upload_leaves_no_file_open(
    api: FakePublicApi, client: Client, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[BinaryIO] = []
    open_at = sdk_artifacts._open_at

    def open_and_note(path: Path, offset_bytes: int) -> BinaryIO:
        opened.append(open_at(path, offset_bytes))
        return opened[-1]

    monkeypatch.setattr(sdk_artifacts, "_open_at", open_and_note)
    api.artifacts.refusals = [(Code.DATA_LOSS, "DIGEST_MISMATCH")]
    with pytest.raises(CallError):
        await client.artifacts.upload(file)
    assert [stream.closed for stream in opened] == [True]
