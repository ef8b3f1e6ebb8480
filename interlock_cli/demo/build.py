"""Makes a version from the flights. Imports scikit-learn, which takes a second: a second start does without."""

import hashlib
from pathlib import Path

from interlock.registry.v1 import model_version_pb2 as pb

from interlock_cli.demo.cache import ARTIFACT_NAME, TrainedVersion, file_digest, keep_version
from interlock_cli.demo.data import LATER, Flights, Recipe, flights_path
from interlock_cli.demo.lineage import build_lineage
from interlock_cli.demo.quality import judge
from interlock_cli.demo.train import SEED, boosting, export, late_probability, one_thread, train
from interlock_cli.demo.version import build_baseline, build_golden_rows, build_signature


def train_version(recipe: Recipe, flights: Flights, folder: Path) -> TrainedVersion:
    """Trains, exports, judges and keeps a version. `flights` are all flights, with the features LIVE where the version knows them."""
    with one_thread():
        return keep_version(recipe, folder, *_made(recipe, flights))


def _made(recipe: Recipe, flights: Flights) -> tuple[bytes, pb.ModelVersion]:
    training, later = flights.within(recipe.window), flights.within(LATER)
    model = train(training, recipe)
    artifact = export(model, recipe, later.features)
    quality = judge(late_probability(model, later.features), later.late, training.late_share())
    data_digest = f"sha256:{file_digest(flights_path())}"
    description = pb.ModelVersion(
        runtime=pb.RUNTIME_ONNX,
        files=[pb.ModelFile(path=ARTIFACT_NAME, digest=hashlib.sha256(artifact).hexdigest())],
        signature=build_signature(artifact, recipe),
        baseline=build_baseline(training, model.predict_proba(training.features), recipe),
        golden_rows=build_golden_rows(model, training, recipe),
        lineage=build_lineage(
            recipe.window, training.late_share(), quality, data_digest, {"seed": SEED, **boosting(recipe)}
        ),
        description=f"Gradient boosting on the flights of {recipe.name}, {recipe.window.first} to {recipe.window.last}",
    )
    return artifact, description
