"""The cache on the disk and the checks of files before a runtime sees them."""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import numpy as np
import pytest

from services.inference.adapters.artifact_cache import ArtifactCache
from services.inference.adapters.load_plan import LoadRefused, LocalFile
from services.inference.adapters.onnx_check import read_model
from services.inference.domain.ports import ArtifactsUnavailable, LoadFailure
from services.inference.domain.version import FileSpec
from tests.fakes import inference_models as models

CONTENT = os.urandom(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = FileSpec("model.onnx", DIGEST, len(CONTENT))


class Source:
    """Gives content in chunks; may break off."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content = content
        self.offsets: list[int] = []
        self.break_after_bytes = 0

    async def download(self, digest: str, offset_bytes: int) -> AsyncGenerator[bytes, None]:
        self.offsets.append(offset_bytes)
        for start in range(offset_bytes, len(self.content), 10_000):
            if self.break_after_bytes and start >= offset_bytes + self.break_after_bytes:
                raise ArtifactsUnavailable("broken")
            yield self.content[start : start + 10_000]


async def test_a_cut_download_goes_on_and_no_half_file_is_ever_visible(folder: Path) -> None:
    source = Source()
    source.break_after_bytes = 130_000
    for _ in range(2):
        with pytest.raises(ArtifactsUnavailable):
            await ArtifactCache(folder, source).fetch([FILE])
        assert not await asyncio.to_thread(lambda: list(folder.glob("sha256/*/*")))
    bundle = await ArtifactCache(folder, source).fetch([FILE])
    assert source.offsets == [0, 130_000, 260_000]
    assert bundle.paths["model.onnx"].read_bytes() == CONTENT


async def test_two_versions_share_one_download(folder: Path) -> None:
    source = Source()
    cache = ArtifactCache(folder, source)
    await asyncio.gather(cache.fetch([FILE]), cache.fetch([FileSpec("other.onnx", DIGEST, 0)]))
    assert source.offsets == [0]


@pytest.mark.parametrize("broken", [CONTENT[:-1], CONTENT[:1000] + b"\x00" + CONTENT[1001:], CONTENT + b"\x00"])
async def test_what_has_another_digest_is_fetched_once_more_and_refused(folder: Path, broken: bytes) -> None:
    source = Source(broken)
    with pytest.raises(LoadFailure, match="corrupt"):
        await ArtifactCache(folder, source).fetch([FILE])
    assert source.offsets == [0, 0]
    assert not await asyncio.to_thread(lambda: [path for path in folder.rglob("*") if path.is_file()])


@pytest.mark.parametrize("digest", ["../../etc/passwd", "", "A" * 64, "0" * 63])
async def test_a_digest_never_becomes_another_path(folder: Path, digest: str) -> None:
    with pytest.raises(LoadFailure):
        await ArtifactCache(folder, Source()).fetch([FileSpec("model.onnx", digest, 1)])


async def test_a_path_that_leaves_its_folder_is_refused(folder: Path) -> None:
    cache = ArtifactCache(folder, Source())
    with pytest.raises(LoadFailure, match="leaves its folder"):
        await cache.fetch([FILE, FileSpec("../evil", DIGEST, 1)])


async def test_what_nobody_needs_is_pruned(folder: Path) -> None:
    cache = ArtifactCache(folder, Source())
    bundle = await cache.fetch([FILE])
    await cache.prune({DIGEST}, -1)
    assert bundle.paths["model.onnx"].exists()
    await cache.prune(set(), 3600)
    assert bundle.paths["model.onnx"].exists()
    await cache.prune(set(), -1)
    assert not bundle.paths["model.onnx"].exists()


def local(path: Path, name: str, content: bytes) -> LocalFile:
    return LocalFile(name, path, hashlib.sha256(content).hexdigest())


def test_links_are_refused_as_model_and_as_weights(folder: Path) -> None:
    weights = np.ones(2, "<f4").tobytes()
    graph = models.external_weights("w.bin", np.ones(2, "<f4"))
    (folder / "model.onnx").write_bytes(graph)
    (folder / "secret").write_bytes(weights)
    files = [local(folder / "model.onnx", "model.onnx", graph), local(folder / "w.bin", "w.bin", weights)]
    (folder / "w.bin").hardlink_to(folder / "secret")
    with pytest.raises(LoadRefused, match="not a link"):
        read_model(files)
    (folder / "w.bin").unlink()
    (folder / "w.bin").symlink_to("secret")
    with pytest.raises(LoadRefused, match="not a link"):
        read_model(files)
    (folder / "w.bin").unlink()
    (folder / "w.bin").write_bytes(weights)
    assert read_model(files) == (graph, True)


@pytest.mark.parametrize("location", ["/etc/passwd", "../w.bin", "w.bin", "", "sub/../../w.bin"])
def test_weights_outside_the_listed_files_are_refused(folder: Path, location: str) -> None:
    graph = models.external_weights(location, np.ones(2, "<f4"))
    (folder / "model.onnx").write_bytes(graph)
    with pytest.raises(LoadRefused, match="not one of the version's files"):
        read_model([local(folder / "model.onnx", "model.onnx", graph)])
