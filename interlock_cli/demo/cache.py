"""Trained versions, kept in the state folder: a second start trains nothing."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import sklearn
from google.protobuf.message import DecodeError
from interlock.registry.v1 import model_version_pb2 as pb

import interlock_cli.demo
import interlock_sdk
from interlock_cli.demo.data import LATER, Flights, Window, flights_path
from interlock_cli.demo.quality import judge
from interlock_cli.demo.train import export, late_probability, train
from interlock_cli.demo.version import build_baseline, build_golden_rows, build_lineage, build_signature

ARTIFACT_NAME = "model.onnx"
_DESCRIPTION_NAME = "version.binpb"


@dataclass(frozen=True, slots=True)
class TrainedVersion:
    """A version that can be registered: its file, and all that the registry is told about it."""

    window: Window
    artifact_path: Path
    description: pb.ModelVersion

    @property
    def digest(self) -> str:
        """SHA-256 of the artifact, in hexadecimal."""
        return self.description.files[0].digest


def cached_version(window: Window, folder: Path) -> TrainedVersion | None:
    """Gives what an earlier start trained from the same data with the same code and libraries, if it is whole."""
    place = folder / recipe_digest(window)
    try:
        description = pb.ModelVersion.FromString((place / _DESCRIPTION_NAME).read_bytes())
        artifact = (place / ARTIFACT_NAME).read_bytes()
    except (FileNotFoundError, DecodeError):
        return None
    if not description.files or description.files[0].digest != hashlib.sha256(artifact).hexdigest():
        return None
    return TrainedVersion(window, place / ARTIFACT_NAME, description)


def train_version(window: Window, flights: Flights, folder: Path) -> TrainedVersion:
    """Trains, exports, judges and keeps a version. `flights` are all flights."""
    training, later = flights.within(window), flights.within(LATER)
    model = train(training)
    artifact = export(model, later.features)
    quality = judge(late_probability(model, later.features), later.late, training.late_share())
    description = pb.ModelVersion(
        runtime=pb.RUNTIME_ONNX,
        files=[pb.ModelFile(path=ARTIFACT_NAME, digest=hashlib.sha256(artifact).hexdigest())],
        signature=build_signature(artifact),
        baseline=build_baseline(training, model.predict_proba(training.features), window),
        golden_rows=build_golden_rows(model, training),
        lineage=build_lineage(window, training.late_share(), quality, f"sha256:{_file_digest(flights_path())}"),
        description=f"Gradient boosting on the flights of {window.name}, {window.first} to {window.last}",
    )
    place = folder / recipe_digest(window)
    _keep(place, {ARTIFACT_NAME: artifact, _DESCRIPTION_NAME: description.SerializeToString(deterministic=True)})
    return TrainedVersion(window, place / ARTIFACT_NAME, description)


def recipe_digest(window: Window) -> str:
    """Digests everything that a trained version depends on: data, window, code and libraries."""
    recipe = {
        "window": {name: str(value) for name, value in asdict(window).items()},
        "data": _file_digest(flights_path()),
        "code": [_file_digest(path) for path in _sources()],
        "libraries": [np.__version__, sklearn.__version__, onnx.__version__],
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def _sources() -> Iterator[Path]:
    for package in (interlock_cli.demo, interlock_sdk):
        for folder in package.__path__:
            yield from sorted(Path(folder).glob("*.py"))


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _keep(place: Path, contents: dict[str, bytes]) -> None:
    """Writes a folder that appears whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=place.parent))
    for name, content in contents.items():
        (unfinished / name).write_bytes(content)
    shutil.rmtree(place, ignore_errors=True)
    unfinished.replace(place)
