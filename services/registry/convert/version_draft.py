"""A version that somebody registers, read from the contract and checked whole."""

from collections.abc import Mapping
from dataclasses import replace

from interlock.registry.v1 import baseline_pb2, model_version_pb2
from interlock.registry.v1 import registry_service_pb2 as pb
from interlock.types.v1 import tensor_pb2

from services.common.stamp import enum_from_proto
from services.registry.convert.signature import data_type_from_proto, signature_from_proto
from services.registry.domain.baseline import Baseline, CategoricalProfile, NumericProfile, Profile
from services.registry.domain.failure import refuse
from services.registry.domain.golden import GoldenRow, Tensor
from services.registry.domain.version import Lineage, ModelFile, Runtime, VersionDraft, check_draft


def version_draft(request: pb.CreateModelVersionRequest) -> VersionDraft:
    """Return the draft in a request; raises InvalidRequest with everything that is wrong with it."""
    draft = _draft(request.model_version)
    refuse(list(check_draft(draft)))
    return draft


def with_sizes(draft: VersionDraft, sizes: Mapping[str, int]) -> VersionDraft:
    """Return the draft with the size of each file, by digest, in its document."""
    message = model_version_pb2.ModelVersion.FromString(draft.document)
    for file in message.files:
        file.size_bytes = sizes[file.digest]
    return replace(draft, document=message.SerializeToString(deterministic=True))


def _draft(message: model_version_pb2.ModelVersion) -> VersionDraft:
    return VersionDraft(
        runtime=enum_from_proto(Runtime, model_version_pb2.Runtime, "RUNTIME_", message.runtime),
        files=tuple(ModelFile(file.path, file.digest) for file in message.files),
        signature=signature_from_proto(message.signature),
        semantic_version=message.semantic_version,
        baseline=_baseline(message.baseline) if message.HasField("baseline") else None,
        golden_rows=tuple(_golden_row(row) for row in message.golden_rows),
        lineage=_lineage(message.lineage),
        description=message.description,
        document=_cleaned(message),
    )


def _cleaned(message: model_version_pb2.ModelVersion) -> bytes:
    """Return the message without what is ours to say and without fields that this release does not know."""
    copy = model_version_pb2.ModelVersion()
    copy.CopyFrom(message)
    copy.DiscardUnknownFields()
    copy.ClearField("name")
    copy.ClearField("creator")
    copy.ClearField("create_time")
    copy.ClearField("digest")
    return copy.SerializeToString(deterministic=True)


def _lineage(message: model_version_pb2.Lineage) -> Lineage:
    return Lineage(
        training_data_uri=message.training_data_uri,
        training_data_digest=message.training_data_digest,
        code_revision=message.code_revision,
        parent_version=message.parent_version,
        metrics=dict(message.metrics),
        parameters=dict(message.parameters),
    )


def _golden_row(message: model_version_pb2.GoldenRow) -> GoldenRow:
    return GoldenRow(
        inputs=tuple(_tensor(tensor) for tensor in message.inputs),
        outputs=tuple(_tensor(tensor) for tensor in message.outputs),
        absolute_tolerance=message.absolute_tolerance,
        relative_tolerance=message.relative_tolerance,
    )


def _tensor(message: tensor_pb2.Tensor) -> Tensor:
    return Tensor(message.name, data_type_from_proto(message.data_type), tuple(message.shape), message.data)


def _baseline(message: baseline_pb2.Baseline) -> Baseline:
    return Baseline(
        row_count=message.row_count,
        description=message.description,
        features=tuple(_profile(profile) for profile in message.features),
        outputs=tuple(_profile(profile) for profile in message.outputs),
    )


def _profile(message: baseline_pb2.FeatureProfile) -> Profile:
    content: NumericProfile | CategoricalProfile | None = None
    if message.WhichOneof("profile") == "numeric":
        content = _numeric(message.numeric)
    elif message.WhichOneof("profile") == "categorical":
        content = _categorical(message.categorical)
    return Profile(message.name, message.count, message.missing_count, content)


def _numeric(message: baseline_pb2.NumericProfile) -> NumericProfile:
    return NumericProfile(
        figures=(message.mean, message.standard_deviation, message.minimum, message.maximum),
        bin_edges=tuple(message.bin_edges),
        bin_counts=tuple(message.bin_counts),
        quantiles=tuple(message.quantiles),
    )


def _categorical(message: baseline_pb2.CategoricalProfile) -> CategoricalProfile:
    counts = tuple(category.count for category in message.categories)
    return CategoricalProfile(counts, message.other_count, message.distinct_count)
