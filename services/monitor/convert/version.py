"""Versions of the registry as the monitor knows them."""

import math
from collections.abc import Iterable
from typing import Final

import numpy as np
from interlock.registry.v1 import baseline_pb2
from interlock.registry.v1.model_version_pb2 import ModelVersion
from interlock.types.v1 import signature_pb2 as pb

from services.common.names import VERSION
from services.monitor.convert.time import duration_from_proto
from services.monitor.convert.value import scalar_from_proto
from services.monitor.domain.profile import CategoricalProfile, FeatureProfile, NumericProfile
from services.monitor.domain.version_info import Baseline, FeatureInfo, FeatureKind, Task, VersionInfo

_KINDS: Final = {
    pb.FEATURE_TYPE_DOUBLE: FeatureKind.DOUBLE,
    pb.FEATURE_TYPE_INT64: FeatureKind.INT64,
    pb.FEATURE_TYPE_STRING: FeatureKind.STRING,
    pb.FEATURE_TYPE_BOOL: FeatureKind.BOOL,
}
_TASKS: Final = {pb.TASK_CLASSIFICATION: Task.CLASSIFICATION, pb.TASK_REGRESSION: Task.REGRESSION}


def version_from_proto(message: ModelVersion) -> VersionInfo:
    """Return what the monitor needs of a version."""
    model, version = VERSION.parse(message.name)
    prediction = message.signature.prediction
    task = _TASKS.get(prediction.task)
    return VersionInfo(
        model=model,
        version=version,
        digest=message.digest,
        features=tuple(_feature(spec) for spec in message.signature.features if spec.type in _KINDS),
        task=task,
        prediction_tensor=prediction.tensor,
        labels=tuple(prediction.labels) if task is Task.CLASSIFICATION else (),
        threshold=prediction.threshold if prediction.HasField("threshold") else None,
        baseline=_baseline(message.baseline) if message.HasField("baseline") else None,
        metrics={name: value for name, value in message.lineage.metrics.items() if math.isfinite(value)},
    )


def _feature(spec: pb.FeatureSpec) -> FeatureInfo:
    allowed = (scalar_from_proto(value) for value in spec.allowed_values)
    return FeatureInfo(
        name=spec.name,
        kind=_KINDS[spec.type],
        tensor=spec.tensor,
        column=spec.column,
        source=spec.source or "request",
        nullable=spec.nullable,
        minimum=spec.minimum if spec.HasField("minimum") else None,
        maximum=spec.maximum if spec.HasField("maximum") else None,
        allowed=tuple(value for value in allowed if value is not None),
        max_age_us=duration_from_proto(spec.max_age) if spec.HasField("max_age") else None,
    )


def _baseline(message: baseline_pb2.Baseline) -> Baseline:
    return Baseline(
        row_count=message.row_count,
        description=message.description,
        features=_profiles(message.features),
        outputs=_profiles(message.outputs),
    )


def _profiles(messages: Iterable[baseline_pb2.FeatureProfile]) -> dict[str, FeatureProfile]:
    return {
        message.name: FeatureProfile(message.name, message.count, message.missing_count, content)
        for message in messages
        if (content := _content(message)) is not None
    }


def _content(message: baseline_pb2.FeatureProfile) -> NumericProfile | CategoricalProfile | None:
    match message.WhichOneof("profile"):
        case "numeric":
            return _numeric(message.numeric)
        case "categorical":
            found = message.categorical
            names = tuple(category.value for category in found.categories)
            counts = np.array([category.count for category in found.categories], dtype=np.float64)
            return CategoricalProfile(names, counts, found.other_count, found.distinct_count)
        case _:
            return None


def _numeric(message: baseline_pb2.NumericProfile) -> NumericProfile:
    return NumericProfile(
        edges=np.array(message.bin_edges, dtype=np.float64),
        counts=np.array(message.bin_counts, dtype=np.float64),
        mean=message.mean,
        standard_deviation=message.standard_deviation,
        minimum=message.minimum,
        maximum=message.maximum,
        quantiles=tuple(message.quantiles),
    )
