"""Makes a version from the flights. Imports scikit-learn, which takes a second: a second start does without."""

import hashlib
from pathlib import Path

from interlock.registry.v1 import model_version_pb2 as pb

from interlock_cli.demo.cache import ARTIFACT_NAME, TrainedVersion, file_digest, keep_version
from interlock_cli.demo.data import LATER, Flights, Window, flights_path
from interlock_cli.demo.lineage import build_lineage
from interlock_cli.demo.quality import judge
from interlock_cli.demo.train import BOOSTING, SEED, export, late_probability, one_thread, train
from interlock_cli.demo.version import build_baseline, build_golden_rows, build_signature


def train_version(window: Window, flights: Flights, folder: Path) -> TrainedVersion:
    """Trains, exports, judges and keeps a version. `flights` are all flights."""
    with one_thread():
        return keep_version(window, folder, *_made(window, flights))


def _made(window: Window, flights: Flights) -> tuple[bytes, pb.ModelVersion]:
    training, later = flights.within(window), flights.within(LATER)
    model = train(training)
    artifact = export(model, later.features)
    quality = judge(late_probability(model, later.features), later.late, training.late_share())
    data_digest = f"sha256:{file_digest(flights_path())}"
    description = pb.ModelVersion(
        runtime=pb.RUNTIME_ONNX,
        files=[pb.ModelFile(path=ARTIFACT_NAME, digest=hashlib.sha256(artifact).hexdigest())],
        signature=build_signature(artifact),
        baseline=build_baseline(training, model.predict_proba(training.features), window),
        golden_rows=build_golden_rows(model, training),
        lineage=build_lineage(window, training.late_share(), quality, data_digest, {"seed": SEED, **BOOSTING}),
        description=f"Gradient boosting on the flights of {window.name}, {window.first} to {window.last}",
    )
    return artifact, description
