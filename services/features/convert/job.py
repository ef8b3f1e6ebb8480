"""Jobs to and from the contract's messages; the same messages are how the database keeps them."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final, cast

from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from interlock.features.v1 import feature_job_pb2 as pb

from services.common import names
from services.common.errors import Violation, echo
from services.common.refusals import InvalidRequest, refuse
from services.common.stamp import (
    duration_from_proto,
    duration_to_proto,
    enum_from_proto,
    enum_to_proto,
    time_from_proto,
    time_to_proto,
)
from services.features.convert.definition import batch_from_proto, batch_to_proto
from services.features.domain.definitions import NEVER
from services.features.domain.file_roots import FileRoots
from services.features.domain.job import (
    DEFAULT_PARITY_ROWS,
    DEFAULT_TOLERANCE,
    FeatureParity,
    Job,
    JobKind,
    JobState,
    JobStatus,
    JoinOutcome,
    JoinSpec,
    MaterializationOutcome,
    MaterializationSpec,
    Outcome,
    ParityOutcome,
    ParitySpec,
    Spec,
)
from services.features.domain.point_in_time import Clock
from services.features.domain.source_check import check_batch

FEATURES_LIMIT: Final = 1_000
PARITY_ROWS_LIMIT: Final = 1_000_000
_MICROSECOND: Final = timedelta(microseconds=1)
_MESSAGES: Final[dict[JobKind, type[Message]]] = {
    JobKind.JOIN: pb.PointInTimeJoinJob,
    JobKind.MATERIALIZATION: pb.MaterializationJob,
    JobKind.PARITY: pb.ParityJob,
}


def spec_from_proto(message: Message, roots: FileRoots, field: str) -> Spec:
    """Return what a job is asked to do; raises InvalidRequest that lists every wrong field under `field`.

    Files have to lie under the roots.
    """
    try:
        spec = _spec(message)
    except ValueError:
        raise InvalidRequest([Violation(field, "want times from the year 1 to 9999, got one beyond")]) from None
    refuse(list(_check_spec(spec, roots, field)))
    return spec


def job_to_proto(job: Job) -> Any:
    """Return the contract's job."""
    message: Any = _MESSAGES[job.kind](name=job.name, status=_status_to_proto(job.status))
    _put_spec(message, job.spec)
    _put_outcome(message, job.outcome)
    return message


def job_to_bytes(job: Job) -> bytes:
    """Return how the database keeps a job."""
    body: bytes = job_to_proto(job).SerializeToString(deterministic=True)
    return body


def job_from_bytes(kind: JobKind, body: bytes, checkpoint: int) -> Job:
    """Return the job that `job_to_bytes` gave."""
    message: Any = _MESSAGES[kind].FromString(body)
    return Job(message.name, _spec(message), _outcome(message), _status_from_proto(message.status), checkpoint)


def check_references(references: tuple[str, ...], field: str) -> Iterator[Violation]:
    """Yield what is wrong with a list of features."""
    if not 1 <= len(references) <= FEATURES_LIMIT:
        yield Violation(field, f"want 1 to {FEATURES_LIMIT}, got {len(references)}")
    for index, reference in enumerate(references[:FEATURES_LIMIT]):
        view, _, feature = reference.rpartition(".")
        if not view or not feature:
            want = 'want "<view>.<feature>" or "<view>.*"'
            yield Violation(f"{field}[{index}]", f"{want}, got {echo(reference)}")


def clock_from_proto(number: int) -> Clock:
    """Return the clock; both where none is given, or one that this release does not know."""
    return enum_from_proto(Clock, pb.JoinClock, "JOIN_CLOCK_", number) or Clock.BOTH


def _spec(message: Any) -> Spec:
    if isinstance(message, pb.PointInTimeJoinJob):
        return JoinSpec(
            rows=batch_from_proto(message.rows),
            features=tuple(message.features),
            output_uri=message.output_uri,
            clock=clock_from_proto(message.clock),
            assumed_delay_us=duration_from_proto(message.assumed_delay) // _MICROSECOND,
        )
    if isinstance(message, pb.MaterializationJob):
        return MaterializationSpec(
            view=message.feature_view,
            start=_time(message, "start_event_time"),
            end=_time(message, "end_event_time"),
        )
    return ParitySpec(
        model_version=message.model_version,
        start=_time(message, "start_time") or NEVER,
        end=_time(message, "end_time") or NEVER,
        vectors=batch_from_proto(message.vectors) if message.HasField("vectors") else None,
        max_row_count=message.max_row_count or DEFAULT_PARITY_ROWS,
        relative_tolerance=message.relative_tolerance or DEFAULT_TOLERANCE,
    )


def _time(message: Any, field: str) -> datetime | None:
    return time_from_proto(getattr(message, field)) if message.HasField(field) else None


def _check_spec(spec: Spec, roots: FileRoots, field: str) -> Iterator[Violation]:
    match spec:
        case JoinSpec():
            rows = spec.rows
            yield from check_batch(rows, [*rows.entity_columns], [*rows.feature_columns], roots, f"{field}.rows")
            yield from check_references(spec.features, f"{field}.features")
            yield from roots.check(spec.output_uri, f"{field}.output_uri")
            if spec.assumed_delay_us < 0:
                yield Violation(f"{field}.assumed_delay", "want 0 or more, got less")
        case MaterializationSpec():
            wrong = names.FEATURE_VIEW.violation(spec.view, f"{field}.feature_view")
            yield from [wrong] if wrong else []
            yield from _check_span(spec.start or NEVER, spec.end, f"{field}.end_event_time")
        case ParitySpec():
            yield from _check_vectors_of(spec, roots, field)
            if not 1 <= spec.max_row_count <= PARITY_ROWS_LIMIT:
                want = f"want 0 (default {DEFAULT_PARITY_ROWS}) to {PARITY_ROWS_LIMIT}"
                yield Violation(f"{field}.max_row_count", f"{want}, got {spec.max_row_count}")
            if not 0 <= spec.relative_tolerance < 1:
                want = "want 0 or more and less than 1"
                yield Violation(f"{field}.relative_tolerance", f"{want}, got {spec.relative_tolerance}")


def _check_vectors_of(spec: ParitySpec, roots: FileRoots, field: str) -> Iterator[Violation]:
    if spec.vectors is None:
        wrong = names.VERSION.violation(spec.model_version, f"{field}.model_version")
        yield from [wrong] if wrong else []
        yield from _check_span(spec.start, spec.end, f"{field}.end_time")
        return
    if spec.model_version:
        yield Violation(f"{field}.model_version", f"want none beside vectors, got {echo(spec.model_version)}")
    for name, time in (("start_time", spec.start), ("end_time", spec.end)):
        if time != NEVER:
            yield Violation(f"{field}.{name}", f"want none beside vectors, got {time.isoformat()}")
    columns = spec.vectors.feature_columns
    yield from check_batch(spec.vectors, [*spec.vectors.entity_columns], [*columns], roots, f"{field}.vectors")
    yield from check_references(tuple(columns), f"{field}.vectors.feature_columns")
    for reference in columns:
        if reference.endswith(".*"):
            at = f"{field}.vectors.feature_columns[{echo(reference)}]"
            yield Violation(at, "want one feature for each column, got all of a view")


def _check_span(start: datetime, end: datetime | None, field: str) -> Iterator[Violation]:
    if end is not None and end <= start:
        yield Violation(field, f"want a time after the start, {start.isoformat()}, got {end.isoformat()}")


def _put_spec(message: Any, spec: Spec) -> None:
    match spec:
        case JoinSpec():
            message.rows.CopyFrom(batch_to_proto(spec.rows))
            message.features.extend(spec.features)
            message.output_uri = spec.output_uri
            message.clock = enum_to_proto(spec.clock, pb.JoinClock, "JOIN_CLOCK_")
            message.assumed_delay.CopyFrom(duration_to_proto(spec.assumed_delay_us * _MICROSECOND))
        case MaterializationSpec():
            message.feature_view = spec.view
            _put_time(message.start_event_time, spec.start)
            _put_time(message.end_event_time, spec.end)
        case ParitySpec():
            message.model_version = spec.model_version
            if spec.vectors is not None:
                message.vectors.CopyFrom(batch_to_proto(spec.vectors))
            else:
                _put_time(message.start_time, spec.start)
                _put_time(message.end_time, spec.end)
            message.max_row_count = spec.max_row_count
            message.relative_tolerance = spec.relative_tolerance


def _put_time(field: Any, time: datetime | None) -> None:
    if time is not None:
        field.CopyFrom(time_to_proto(time))


def _put_outcome(message: Any, outcome: Outcome) -> None:
    match outcome:
        case JoinOutcome():
            message.present_counts.update(outcome.present_counts)
        case MaterializationOutcome():
            message.written_count, message.older_count = outcome.written_count, outcome.older_count
        case ParityOutcome():
            message.features.extend(map(_parity_to_proto, outcome.features))


def _outcome(message: Any) -> Outcome:
    if isinstance(message, pb.PointInTimeJoinJob):
        return JoinOutcome(dict(message.present_counts))
    if isinstance(message, pb.MaterializationJob):
        return MaterializationOutcome(message.written_count, message.older_count)
    return ParityOutcome(tuple(map(_parity_from_proto, message.features)))


def _parity_to_proto(parity: FeatureParity) -> pb.FeatureParity:
    message = pb.FeatureParity(
        feature=parity.feature,
        compared_count=parity.compared_count,
        different_count=parity.different_count,
        online_only_count=parity.online_only_count,
        offline_only_count=parity.offline_only_count,
        largest_difference=parity.largest_difference,
        example_prediction_ids=parity.example_prediction_ids,
        incomparable_counts=parity.incomparable_counts,
    )
    if parity.suspected_shift_us:
        message.suspected_shift.CopyFrom(duration_to_proto(parity.suspected_shift_us * _MICROSECOND))
    return message


def _parity_from_proto(message: pb.FeatureParity) -> FeatureParity:
    return FeatureParity(
        feature=message.feature,
        compared_count=message.compared_count,
        different_count=message.different_count,
        online_only_count=message.online_only_count,
        offline_only_count=message.offline_only_count,
        largest_difference=message.largest_difference,
        suspected_shift_us=duration_from_proto(message.suspected_shift) // _MICROSECOND,
        example_prediction_ids=tuple(message.example_prediction_ids),
        incomparable_counts=dict(message.incomparable_counts),
    )


def _status_to_proto(status: JobStatus) -> pb.JobStatus:
    message = pb.JobStatus(
        state=cast("pb.JobState.ValueType", enum_to_proto(status.state, pb.JobState, "JOB_STATE_")),
        done_count=status.done_count,
        total_count=status.total_count,
        skipped_counts=status.skipped_counts,
        error=Status.FromString(status.error) if status.error else None,
        create_time=time_to_proto(status.create_time),
        creator=status.creator,
    )
    _put_time(message.start_time, status.start_time)
    _put_time(message.end_time, status.end_time)
    return message


def _status_from_proto(message: pb.JobStatus) -> JobStatus:
    return JobStatus(
        state=enum_from_proto(JobState, pb.JobState, "JOB_STATE_", message.state) or JobState.PENDING,
        done_count=message.done_count,
        total_count=message.total_count,
        skipped_counts=dict(message.skipped_counts),
        error=message.error.SerializeToString() if message.HasField("error") else b"",
        create_time=time_from_proto(message.create_time),
        start_time=_time(message, "start_time"),
        end_time=_time(message, "end_time"),
        creator=message.creator,
    )
