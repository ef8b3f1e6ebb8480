"""Commands about offline features: joins, materialization, parity. They belong to `interlock features`."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer
from interlock.features.v1 import feature_job_pb2 as jobs

from interlock_cli.commands.running import AsJson, Target, call
from interlock_cli.errors import CommandFailed
from interlock_cli.output import print_json, print_table, say
from interlock_cli.wire_json import to_json
from interlock_sdk.client import Client
from interlock_sdk.offline_features import OfflineFeatures
from services.common.duration_text import format_duration

_JobT = TypeVar("_JobT", jobs.PointInTimeJoinJob, jobs.MaterializationJob, jobs.ParityJob)
_READERS: Final = (".parquet", ".csv")
Time = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="In UTC.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands into the group."""
    app.command()(join)
    app.command()(materialize)
    app.command()(parity)


def join(
    rows: Annotated[Path, typer.Argument(help="Parquet or CSV file with entity keys and a time.")],
    features: Annotated[list[str], typer.Argument(help='"<view>.<feature>" or "<view>.*".')],
    *,
    output: Annotated[Path, typer.Option(help="Parquet or CSV file for the result.")],
    time_column: Annotated[str, typer.Option(help="Column with the time of each row.")] = "event_time",
    time_zone: Annotated[str, typer.Option(help="IANA zone of times that carry none.")] = "",
    event_time_only: Annotated[
        bool, typer.Option("--event-time-only", help="Leave out when values became known: leaks; for comparison.")
    ] = False,
    target: Target = "",
) -> None:
    """Join features to the rows of a file, each as it was known at the row's time."""
    for path in (rows, output):
        if path.suffix not in _READERS:
            raise CommandFailed(f"{path}: want a file that ends in {' or '.join(_READERS)}, got another one")
    table = _read(rows)

    async def work(client: Client) -> Any:
        return await client.offline_features.join(
            table, features, time_column=time_column, time_zone=time_zone, event_time_only=event_time_only
        )

    joined = call(target, work)
    _write(joined, output)
    counts = [
        (name, f"{len(joined) - joined.column(name).null_count:,}", f"{joined.column(name).null_count:,}")
        for name in joined.schema.names
        if name not in table.schema.names
    ]
    print_table(("column", "values", "null"), counts, empty="no feature was asked for")


def materialize(
    view: Annotated[str, typer.Argument(help="Id of a feature view with a batch source.")],
    *,
    start: Time = None,
    end: Time = None,
    target: Target = "",
    as_json: AsJson = False,
) -> None:
    """Bring a view's batch source into the online store, from where the last time ended unless --start says else."""

    async def work(client: Client) -> jobs.MaterializationJob:
        offline = client.offline_features
        return await _ended(offline, await offline.materialize(view, start=_utc(start), end=_utc(end)), as_json)

    job = call(target, work)
    _require_success(job, as_json=as_json)
    if not as_json:
        skipped = "".join(
            f", {count:,} left out: {reason}" for reason, count in sorted(job.status.skipped_counts.items())
        )
        say(
            f"{job.status.done_count:,} rows, {job.written_count:,} written, {job.older_count:,} older than known{skipped}"
        )


def parity(
    model_version: Annotated[str, typer.Argument(help="models/<model>/versions/<version>")],
    *,
    start: Time = None,
    end: Time = None,
    rows: Annotated[int, typer.Option(help="Most predictions to compare; 0 is 10,000.")] = 0,
    target: Target = "",
    as_json: AsJson = False,
) -> None:
    """Recompute logged features of a version offline and compare; by default those of the last day."""
    last = _utc(end) or datetime.now(UTC)
    first = _utc(start) or last - timedelta(days=1)

    async def work(client: Client) -> jobs.ParityJob:
        offline = client.offline_features
        job = await offline.check_parity(model_version, start=first, end=last, max_row_count=rows)
        return await _ended(offline, job, as_json)

    job = call(target, work)
    _require_success(job, as_json=as_json)
    if not as_json:
        columns = (
            "feature",
            "compared",
            "different",
            "online only",
            "offline only",
            "largest",
            "suspected shift",
            "not comparable",
        )
        print_table(columns, list(map(_parity_row, job.features)), empty="the version fetches no feature")


async def _ended(offline: OfflineFeatures, job: _JobT, quiet: bool) -> _JobT:
    last = -1

    def tell(found: _JobT) -> None:
        nonlocal last
        if not quiet and found.status.done_count != last and found.status.total_count:
            last = found.status.done_count
            say(f"{last:,} of {found.status.total_count:,} rows")

    return await offline.wait(job, tell)


def _require_success(job: _JobT, *, as_json: bool) -> None:
    if as_json:
        print_json(to_json(job))
    if job.status.state != jobs.JOB_STATE_SUCCEEDED:
        raise CommandFailed(f"{job.name}: {job.status.error.message or 'was cancelled'}")


def _parity_row(found: jobs.FeatureParity) -> tuple[str, ...]:
    shift = found.suspected_shift.ToTimedelta()
    sign = "-" if shift < timedelta() else ""
    return (
        found.feature,
        f"{found.compared_count:,}",
        f"{found.different_count:,}",
        f"{found.online_only_count:,}",
        f"{found.offline_only_count:,}",
        f"{found.largest_difference:.6g}",
        f"{sign}{format_duration(abs(shift))}" if shift else "",
        ", ".join(f"{count:,} {reason}" for reason, count in sorted(found.incomparable_counts.items())),
    )


def _utc(time: datetime | None) -> datetime | None:
    return None if time is None else time.replace(tzinfo=UTC)


def _read(path: Path) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - other commands need not wait for it
    import pyarrow.csv as pa_csv  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        return pq.read_table(path) if path.suffix == ".parquet" else pa_csv.read_csv(path)
    except (OSError, pa.ArrowException) as error:
        raise CommandFailed(f"{path}: {str(error).splitlines()[0]}") from None


def _write(table: Any, path: Path) -> None:
    import pyarrow.csv as pa_csv  # noqa: PLC0415 - other commands need not wait for it
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        if path.suffix == ".parquet":
            pq.write_table(table, path)
        else:
            pa_csv.write_csv(table, path)
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}") from None
