"""What a parity check compares: the features that a version fetches, or those that a table of vectors names."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

from interlock.types.v1 import signature_pb2, tensor_pb2

from services.features.adapters.offline_task import LoggedFeature
from services.features.convert.definition import type_from_proto
from services.features.convert.signature import REQUEST_SOURCES, binding_from_proto
from services.features.convert.value import value_from_proto
from services.features.domain.catalog import Snapshot
from services.features.domain.definitions import BatchSource, FeatureType
from services.features.domain.point_in_time import (
    AggregateView,
    JoinPlan,
    PlannedFeature,
    PlannedView,
    output_column,
    plan_views,
)

READ_TIME_COLUMN: Final = "feature_read_time"
_MICROSECOND: Final = timedelta(microseconds=1)
_HOUR_US: Final = 3_600_000_000
_HOURS: Final = (*range(1, 15), 24, 48)
# How far the nearest number of a type may lie from the one that was put in, as a share of it; BF16 is cut and not rounded.
_PRECISIONS: Final = {
    tensor_pb2.DATA_TYPE_FP16: 2.0**-10,
    tensor_pb2.DATA_TYPE_BF16: 2.0**-7,
    tensor_pb2.DATA_TYPE_FP32: 2.0**-23,
}


@dataclass(frozen=True)
class ParityPlan:
    """What is recomputed, what it is compared with, and how exact the logged request values are, by name."""

    join: JoinPlan
    features: tuple[LoggedFeature, ...]
    input_precisions: Mapping[str, float]
    shifts_us: tuple[int, ...]


def plan_signature(snapshot: Snapshot, signature: signature_pb2.Signature) -> ParityPlan:
    """Return the plan for what a version fetches; raises ResourceNotFound for a feature that is gone."""
    precisions = {tensor.name: _PRECISIONS.get(tensor.data_type, 0.0) for tensor in signature.inputs}
    fetched = [spec for spec in signature.features if spec.source not in REQUEST_SOURCES]
    by_source: dict[str, list[signature_pb2.FeatureSpec]] = {}
    for spec in fetched:
        by_source.setdefault(spec.source, []).append(spec)
    views = tuple(_with_ages(view, by_source) for view in plan_views(snapshot, sorted(by_source), {}))
    features = tuple(_logged(spec, precisions.get(spec.tensor, 0.0)) for spec in fetched)
    inputs = {spec.name: precisions.get(spec.tensor, 0.0) for spec in signature.features if spec not in fetched}
    return ParityPlan(JoinPlan(READ_TIME_COLUMN, views), features, inputs, _shifts(views))


def plan_vectors(snapshot: Snapshot, vectors: BatchSource) -> ParityPlan:
    """Return the plan for the features that a table names; raises ResourceNotFound for one that is unknown."""
    views = plan_views(snapshot, sorted(vectors.feature_columns), vectors.entity_columns)
    features = tuple(
        LoggedFeature(f"{view.view}.{each.name}", f"{view.view}.{each.name}", each.output, each.type, each.is_list)
        for view in views
        for each in view.features
    )
    return ParityPlan(JoinPlan(READ_TIME_COLUMN, views), features, {}, _shifts(views))


def _with_ages(view: PlannedView, fetched: Mapping[str, Sequence[signature_pb2.FeatureSpec]]) -> PlannedView:
    """Return the view with values as old as the version takes them: it may want younger ones than the view does."""
    return replace(view, features=tuple(_with_age(each, fetched[f"{view.view}.{each.name}"]) for each in view.features))


def _with_age(feature: PlannedFeature, specs: Sequence[signature_pb2.FeatureSpec]) -> PlannedFeature:
    wanted = [age // _MICROSECOND for spec in specs if (age := binding_from_proto(spec).max_age) is not None]
    limits = [*wanted, *([] if feature.max_age_us is None else [feature.max_age_us])]
    return replace(feature, max_age_us=min(limits, default=None))


def _logged(spec: signature_pb2.FeatureSpec, precision: float) -> LoggedFeature:
    """Return what a signature says of a fetched feature: its name in the log, and what its model takes."""
    view, _, feature = spec.source.rpartition(".")
    kind = type_from_proto(spec.type) or FeatureType.DOUBLE
    fallback: Any = None
    if spec.HasField("default_value") and (
        spec.nullable or spec.missing_policy == signature_pb2.MISSING_POLICY_DEFAULT
    ):
        fallback = value_from_proto(spec.default_value)
        if kind is FeatureType.DOUBLE and isinstance(fallback, int):
            fallback = float(fallback)
    clips = spec.violation_policy == signature_pb2.VIOLATION_POLICY_CLIP
    return LoggedFeature(
        name=spec.name,
        source=spec.source,
        output=output_column(view, feature),
        type=kind,
        fallback=fallback,
        minimum=spec.minimum if clips and spec.HasField("minimum") else None,
        maximum=spec.maximum if clips and spec.HasField("maximum") else None,
        precision=precision,
    )


def _shifts(views: Sequence[PlannedView]) -> tuple[int, ...]:
    """Return the shifts to try: whole hours as zones have them, days, and the lengths of windows."""
    found = {hours * _HOUR_US for hours in _HOURS} | set(_windows(views))
    return tuple(sorted(found | {-shift for shift in found}))


def _windows(views: Sequence[PlannedView]) -> Iterator[int]:
    for view in views:
        if isinstance(view, AggregateView):
            yield from (each.window // _MICROSECOND for each in view.aggregates)
