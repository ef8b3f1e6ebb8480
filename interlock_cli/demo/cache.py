"""Trained versions, kept in the state folder: a second start trains nothing."""

import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from google.protobuf.message import DecodeError
from interlock.registry.v1 import model_version_pb2 as pb

import interlock_cli.demo
import interlock_sdk
from interlock_cli.demo.data import Recipe, data_path, flights_path

ARTIFACT_NAME = "model.onnx"
_DESCRIPTION_NAME = "version.binpb"
_LIBRARIES = ("numpy", "onnx", "scikit-learn")


@dataclass(frozen=True, slots=True)
class TrainedVersion:
    """A version that can be registered: its file, and all that the registry is told about it."""

    recipe: Recipe
    artifact_path: Path
    description: pb.ModelVersion

    @property
    def digest(self) -> str:
        """SHA-256 of the artifact, in hexadecimal."""
        return self.description.files[0].digest


def cached_version(recipe: Recipe, folder: Path) -> TrainedVersion | None:
    """Gives what an earlier start trained from the same data with the same code and libraries, if it is whole."""
    place = folder / recipe_digest(recipe)
    try:
        description = pb.ModelVersion.FromString((place / _DESCRIPTION_NAME).read_bytes())
        artifact = (place / ARTIFACT_NAME).read_bytes()
    except (FileNotFoundError, DecodeError):
        return None
    if not description.files or description.files[0].digest != hashlib.sha256(artifact).hexdigest():
        return None
    return TrainedVersion(recipe, place / ARTIFACT_NAME, description)


def recipe_digest(recipe: Recipe) -> str:
    """Digests everything that a trained version depends on: data, recipe, code and libraries."""
    ingredients = {
        "recipe": str(asdict(recipe)),
        "data": [file_digest(flights_path()), file_digest(data_path("weather.csv"))],
        "code": [file_digest(path) for path in _sources()],
        "libraries": {name: version(name) for name in _LIBRARIES},
    }
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


def _sources() -> Iterator[Path]:
    for package in (interlock_cli.demo, interlock_sdk):
        for folder in package.__path__:
            yield from sorted(Path(folder).glob("*.py"))


def file_digest(path: Path) -> str:
    """Gives the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def keep_version(recipe: Recipe, folder: Path, artifact: bytes, description: pb.ModelVersion) -> TrainedVersion:
    """Keeps what was trained where `cached_version` finds it: whole or not at all."""
    place = folder / recipe_digest(recipe)
    contents = {ARTIFACT_NAME: artifact, _DESCRIPTION_NAME: description.SerializeToString(deterministic=True)}
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=place.parent))
    for name, content in contents.items():
        (unfinished / name).write_bytes(content)
    shutil.rmtree(place, ignore_errors=True)
    try:
        unfinished.replace(place)
    except OSError as error:
        # Another start has kept the same version at the same moment.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(unfinished)
    return TrainedVersion(recipe, place / ARTIFACT_NAME, description)
