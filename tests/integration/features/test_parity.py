"""Parity of online and offline values through the wire: what was read against what the history says it should be."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf.duration_pb2 import Duration
from interlock.features.v1 import feature_job_pb2 as jobs
from interlock.features.v1 import feature_job_service_pb2 as job_pb
from interlock.features.v1 import feature_service_pb2 as online_pb
from interlock.features.v1.feature_view_pb2 import (
    AGGREGATE_FUNCTION_LAST_N,
    AGGREGATE_FUNCTION_MEAN,
    FILE_FORMAT_PARQUET,
    Aggregate,
    AggregateSource,
    BatchSource,
    EventField,
    Feature,
    FeatureView,
    FileLocation,
    OnDemandSource,
)
from interlock.types.v1.feature_value_pb2 import FeatureValue
from interlock.types.v1.signature_pb2 import (
    FEATURE_TYPE_DOUBLE,
    MISSING_POLICY_DEFAULT,
    FeatureSpec,
)
from interlock.types.v1.tensor_pb2 import DATA_TYPE_FP32, TensorSpec
from redis import Redis

from services.features.domain import view_kind
from services.features.domain.aggregate_view import AggregateReader, AggregateWriter
from services.features.domain.catalog import CompiledFeature, CompiledView
from services.features.domain.ports import Column, Outcome, ReadRow, Reply, Row, ScriptCall
from tests.fakes.aggregate_world import RedisProcess, redis_process
from tests.fakes.features_service import a_view, an_entity, hours, running_features
from tests.fakes.offline_world import NOON, OfflineWorld, refuses, row, stamp
from tests.fakes.parity_world import ParityWorld, serve_parity_world
from tests.fakes.registry_service import refused, short_folder

JOBS = "interlock.features.v1.FeatureJobService"
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
DELAYS: Final = [(at / 3, at / 3 + 7 / 60, float(at * at % 97)) for at in range(-40, 40)]
"""Event and known-at time in hours, and a value: every 20 minutes, known 7 minutes later."""
TIMES: Final = [number / 7 for number in range(60)]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    with redis_process() as process:
        yield process


@asynccontextmanager
async def running(parity: ParityWorld, folder: Path, redis: RedisProcess) -> AsyncIterator[OfflineWorld]:
    """Run a features service whose registry and monitor are `parity`."""
    with Redis(unix_socket_path=redis.socket) as client:
        client.flushall()
    with short_folder() as sockets:
        address = f"unix:{sockets / 'peers.sock'}"
        settings: dict[str, Any] = {
            "redis_url": f"unix://{redis.socket}",
            "registry_address": address,
            "monitor_address": address,
            "job_poll_s": 0.05,
            # A machine that runs tests may be busy.
            "redis_read_deadline_s": 5,
            "redis_write_deadline_s": 10,
        }
        async with (
            serve_parity_world(parity, address),
            running_features(folder, **settings) as features,
        ):
            yield OfflineWorld(features, folder)


def logged(
    number: int, values: dict[str, float | None], redacted: Sequence[str] = (), *, at: float | None = None
) -> dict[str, Any]:
    """Return a logged prediction."""
    at = TIMES[number] if at is None else at
    return {
        "prediction_id": f"id-{number}",
        "feature_read_time": (NOON + timedelta(hours=at)).replace(tzinfo=None),
        "entities": [("carrier", "AA")],
        "feature_event_times": [],
        "redacted_features": list(redacted),
        "features": values,
    }


def last(at: float, *, known_early: bool) -> float | None:
    """Return the last third value that happened by then; online knew it at once, the history 43 minutes later."""
    seen = [value for event, known, value in DELAYS[::3] if event <= at and (known_early or known + 0.6 <= at)]
    return seen[-1] if seen else None


def window(at: float) -> list[float]:
    """Return the values that a window of an hour and a half holds, the newest first."""
    return [value for event, known, value in DELAYS if at - 1.5 < event <= at and known <= at][::-1]


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def arrivals(
    function: Any,
    names: Sequence[str],
    view: str = "arrivals",
    allowed_lateness: Duration | None = None,
    **fields: Any,
) -> FeatureView:
    """Return a view of aggregates over the same window, one for each name."""
    source = AggregateSource(
        fields=[EventField(name="delay", type=FEATURE_TYPE_DOUBLE)],
        aggregates=[
            Aggregate(feature=name, function=function, field="delay", window=hours(1.5), **fields) for name in names
        ],
    )
    is_list = function == AGGREGATE_FUNCTION_LAST_N
    features = [Feature(name=name, type=FEATURE_TYPE_DOUBLE, is_list=is_list) for name in names]
    return a_view(view, features=features, aggregate_source=source, allowed_lateness=allowed_lateness)


async def push_delays(world: OfflineWorld) -> None:
    events = (row("AA", at, known, {"delay": value}, f"{at}") for at, known, value in DELAYS)
    await world.push("arrivals", *events)
    late = (row("AA", at, known + 0.6, {"delay_mean": value}) for at, known, value in DELAYS[::3])
    await world.push("carrier_delays", *late)


@pytest.mark.rpc(f"{JOBS}/CreateParityJob", "happy")
@pytest.mark.rpc(f"{JOBS}/GetParityJob", "happy")
@pytest.mark.rpc(f"{JOBS}/ListParityJobs", "happy")
async def test_parity_finds_a_wrong_zone_a_window_off_by_one_and_late_arrivals(
    tmp_path: Path, redis: RedisProcess
) -> None:
    """Online read `zoned` 4 hours ago, `shifted` a window ago, and `late` before history says that it could."""
    names = ("right", "zoned", "shifted")
    parity = ParityWorld()
    parity.specs = [FeatureSpec(name=name, source=f"arrivals.{name}", type=FEATURE_TYPE_DOUBLE) for name in names]
    parity.specs += [
        FeatureSpec(name="late", source="carrier_delays.delay_mean", type=FEATURE_TYPE_DOUBLE),
        FeatureSpec(
            name="empty",
            source="carrier_delays.flight_count",
            type=FEATURE_TYPE_DOUBLE,
            missing_policy=MISSING_POLICY_DEFAULT,
            default_value=FeatureValue(double_value=-1),
        ),
        FeatureSpec(name="hour", source="request", type=FEATURE_TYPE_DOUBLE),
    ]
    for number, at in enumerate(TIMES):
        read_at = {"right": at, "zoned": at - 4, "shifted": at - 1.5}
        values = {name: mean(window(then)) for name, then in read_at.items()} | {"empty": -1.0, "hour": 1.0}
        parity.rows.append(logged(number, values | {"late": last(at, known_early=True)}))
    # What was kept back is no difference, whatever stands in its place.
    parity.rows.append(logged(0, {"right": None, "empty": 7.0}, redacted=["right", "carrier"]))
    async with running(parity, tmp_path, redis) as world:
        await world.features.apply(an_entity(), a_view(max_age=hours(48)), arrivals(AGGREGATE_FUNCTION_MEAN, names))
        await push_delays(world)
        job = await world.compared(await world.start_parity())
        listed = await world.jobs.ListParityJobs(job_pb.ListParityJobsRequest())
        assert [each.name for each in listed.parity_jobs] == [job.name]
    assert job.status.state == jobs.JOB_STATE_SUCCEEDED, job
    found = {each.feature: each for each in job.features}
    assert found["arrivals.right"].different_count == found["carrier_delays.flight_count"].different_count == 0
    assert {each.compared_count for each in job.features} == {60}
    assert found["arrivals.right"].incomparable_counts == {"VALUE_REDACTED": 1}
    assert found["arrivals.zoned"].incomparable_counts == {"KEY_REDACTED(carrier)": 1}
    zoned, shifted, late = (found[name] for name in ("arrivals.zoned", "arrivals.shifted", "carrier_delays.delay_mean"))
    assert zoned.suspected_shift.ToTimedelta() == timedelta(hours=-4)
    assert shifted.suspected_shift.ToTimedelta() == timedelta(hours=-1.5)
    wrong = [
        f"id-{number}" for number, at in enumerate(TIMES) if last(at, known_early=True) != last(at, known_early=False)
    ]
    assert late.different_count == len(wrong) > 20
    assert list(late.example_prediction_ids) == wrong[:20]
    assert [each.different_count for each in job.features] == sorted(
        (each.different_count for each in job.features), reverse=True
    )
    assert parity.asked[0].model == "flight-delay"


class _WrongReader(AggregateReader):
    """Takes local time for UTC in one view; in another its window holds the event at which it begins."""

    def __init__(self, view: CompiledView, features: Sequence[CompiledFeature]) -> None:
        super().__init__(view, features)
        self._late_us = 4 * 3_600_000_000 * (view.definition.id == "zoned")
        if view.definition.id == "boundary":
            for each in self._computations:
                each.window_us += 1
            self._longest_us += 1

    def ask(self, rows: Sequence[ReadRow], as_of_us: int) -> Sequence[ScriptCall]:
        return super().ask(rows, as_of_us - self._late_us)

    def answer(self, rows: Sequence[ReadRow], replies: Sequence[Reply], as_of_us: int) -> Sequence[Column]:
        return super().answer(rows, replies, as_of_us - self._late_us)


class _WrongWriter(AggregateWriter):
    """Forgets in one view when an event became known."""

    def write(self, row: Row, now_us: int) -> ScriptCall | Outcome:
        known_at_us = row.event_time_us if self.view.definition.id == "early" else row.known_at_us
        return super().write(replace(row, known_at_us=known_at_us), now_us)


async def test_parity_finds_what_is_wrong_in_the_online_code_from_what_it_served(
    tmp_path: Path, redis: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same events in four views; the log holds what the service itself read from Redis at each time."""
    monkeypatch.setattr(view_kind, "AggregateReader", _WrongReader)
    monkeypatch.setattr(view_kind, "AggregateWriter", _WrongWriter)
    views = ("right", "zoned", "boundary", "early")
    # An event is exactly a window old at every other one.
    times = [number / 6 for number in range(60)]
    parity = ParityWorld()
    parity.specs = [FeatureSpec(name=view, source=f"{view}.mean", type=FEATURE_TYPE_DOUBLE) for view in views]
    async with running(parity, tmp_path, redis) as world:
        made = [arrivals(AGGREGATE_FUNCTION_MEAN, ["mean"], view, allowed_lateness=hours(24)) for view in views]
        await world.features.apply(an_entity(), *made)
        for view in views:
            await world.push(view, *(row("AA", at, known, {"delay": value}, f"{at}") for at, known, value in DELAYS))
        for number, at in enumerate(times):
            read = online_pb.ReadFeaturesRequest(
                features=[f"{view}.mean" for view in views],
                rows=[online_pb.ReadRow(entities={"carrier": "AA"})],
                as_of_time=stamp(at),
            )
            columns = (await world.online.ReadFeatures(read)).columns
            served = {view: column.values[0].double_value for view, column in zip(views, columns, strict=True)}
            parity.rows.append(logged(number, dict(served), at=at))
        job = await world.compared(await world.start_parity())
    assert job.status.state == jobs.JOB_STATE_SUCCEEDED, job
    found = {each.feature.removesuffix(".mean"): each for each in job.features}
    assert {each.compared_count for each in job.features} == {60}
    assert found["right"].different_count == 0
    assert found["zoned"].suspected_shift.ToTimedelta() == timedelta(hours=-4)
    minutes = [(round(event * 60), round(known * 60), value) for event, known, value in DELAYS]
    for view in ("boundary", "early"):
        wrong = []
        for number in range(60):
            end = number * 10
            held = [
                value
                for event, known, value in minutes
                if end - 90 - (view == "boundary") < event <= end and (known <= end or view == "early")
            ]
            right = [value for event, known, value in minutes if end - 90 < event <= end and known <= end]
            wrong += [f"id-{number}"] * (mean(held) != pytest.approx(mean(right), rel=1e-9))
        assert found[view].different_count == len(wrong) >= 28, view
        assert list(found[view].example_prediction_ids) == wrong[:20], view


EXPRESSIONS: Final = {
    "delay": "actual - scheduled",
    "zoned": "actual - scheduled + 0",
    "recent": "if(days <= 7, 1.0, 0.0)",
    "shifted": "if(days <= 7, 1.0, 0.5 - 0.5)",
    "late": "inbound * 2",
    "hidden": "age + 1",
}


async def test_parity_computes_features_on_demand_anew_from_what_the_request_brought(
    tmp_path: Path, redis: RedisProcess
) -> None:
    """`delay` is what is left of two large numbers in single precision; `zoned` took local for UTC, `shifted` counted a
    day less, and `late` had a value that the request did not bring yet.
    """
    inputs = ("actual", "scheduled", "days", "inbound", "age")
    parity = ParityWorld()
    parity.tensors = [TensorSpec(name="x", data_type=DATA_TYPE_FP32)]
    parity.specs = [FeatureSpec(name=name, tensor="x", type=FEATURE_TYPE_DOUBLE, nullable=True) for name in inputs]
    parity.specs += [
        FeatureSpec(name=f"my_{name}", tensor="x", source=f"now.{name}", type=FEATURE_TYPE_DOUBLE)
        for name in EXPRESSIONS
    ]
    parity.unlogged = {"age"}
    for number, at in enumerate(TIMES):
        actual, scheduled, days = 7e5 + 60 * at + number % 13 / 7, 7e5 + 60 * at, float(number % 12)
        values: dict[str, float | None] = {
            "actual": actual,
            "scheduled": scheduled,
            "days": days,
            "inbound": None if number % 3 == 0 else 5.0,
            "my_delay": actual - scheduled,
            "my_zoned": actual - scheduled - 240,
            "my_recent": float(days <= 7),
            "my_shifted": float(days + 1 <= 7),
            "my_late": 10.0,
            "my_hidden": 1.0,
        }
        redacted = ["actual", "my_recent"] if number == 59 else []
        parity.rows.append(
            logged(number, {name: None if name in redacted else values[name] for name in values}, redacted)
        )
    view = a_view(
        "now",
        entities=[],
        features=[Feature(name=name, type=FEATURE_TYPE_DOUBLE, nullable=True) for name in EXPRESSIONS],
        on_demand_source=OnDemandSource(
            inputs=[EventField(name=name, type=FEATURE_TYPE_DOUBLE) for name in inputs], expressions=EXPRESSIONS
        ),
    )
    async with running(parity, tmp_path, redis) as world:
        await world.features.apply(an_entity(), view)
        job = await world.compared(await world.start_parity())
    assert job.status.state == jobs.JOB_STATE_SUCCEEDED, job
    found = {each.feature.removeprefix("now."): each for each in job.features}
    assert {name: each.different_count for name, each in found.items()} == {
        "delay": 0,
        "zoned": 59,
        "recent": 0,
        "shifted": sum(number % 12 == 7 for number in range(60)),
        "late": 20,
        "hidden": 0,
    }
    assert found["late"].online_only_count == 20
    assert found["zoned"].largest_difference == pytest.approx(240, abs=0.2)
    assert {name: dict(each.incomparable_counts) for name, each in found.items() if each.incomparable_counts} == {
        "delay": {"INPUT_REDACTED(actual)": 1},
        "zoned": {"INPUT_REDACTED(actual)": 1},
        "recent": {"VALUE_REDACTED": 1},
        "hidden": {"INPUT_NOT_LOGGED(age)": 60},
    }
    assert [found[name].compared_count for name in ("delay", "late", "hidden")] == [59, 60, 0]


async def test_parity_compares_lists_and_computed_values_of_a_table_of_vectors(
    tmp_path: Path, redis: RedisProcess
) -> None:
    """Vectors that somebody read and kept, since no signature takes a list."""
    names = ("right", "zoned", "shifted", "late")

    def newest(at: float) -> list[float] | None:
        return window(at)[:2] or None

    def known_early(at: float) -> list[float]:
        return [value for event, _, value in DELAYS if at - 1.5 < event <= at][::-1][:2]

    online = {
        "right": [newest(at) for at in TIMES],
        "zoned": [newest(at - 4) for at in TIMES],
        "shifted": [newest(at - 1.5) for at in TIMES],
        "late": [known_early(at) for at in TIMES],
        "prediction_id": [f"row {number}" for number in range(len(TIMES))],
        "scheduled": [float(number) for number in range(len(TIMES))],
        "doubled": [number * 2.0 for number in range(len(TIMES))],
        "carrier": ["AA"] * len(TIMES),
        "read": [NOON + timedelta(hours=at) for at in TIMES],
    }
    nothing = {"read": [None], "carrier": ["AA"], "right": [[0.0]]}
    table = pa.concat_tables([pa.table(online), pa.table(nothing)], promote_options="permissive")
    pq.write_table(table, tmp_path / "vectors.parquet")
    vectors = BatchSource(
        files=FileLocation(uri=f"file://{tmp_path / 'vectors.parquet'}", format=FILE_FORMAT_PARQUET),
        event_time_column="read",
        feature_columns={f"arrivals.{name}": name for name in names} | {"now.doubled": "doubled"},
    )
    view = a_view(
        "now",
        entities=[],
        features=[Feature(name="doubled", type=FEATURE_TYPE_DOUBLE)],
        on_demand_source=OnDemandSource(
            inputs=[EventField(name="scheduled", type=FEATURE_TYPE_DOUBLE)], expressions={"doubled": "scheduled * 2"}
        ),
    )
    async with running(ParityWorld(), tmp_path, redis) as world:
        lists = arrivals(AGGREGATE_FUNCTION_LAST_N, names, last_count=2)
        await world.features.apply(an_entity(), a_view(), lists, view)
        await push_delays(world)
        job = await world.compared(await world.start_parity(vectors=vectors))
        vectors.feature_columns["arrivals.right"] = "wrong"
        failed = await world.compared(await world.start_parity(vectors=vectors))
        vectors.feature_columns["arrivals.none"] = "right"
        await refuses(world.start_parity(vectors=vectors), (NOT_FOUND, "RESOURCE_NOT_FOUND"))
        vectors.feature_columns.clear()
        with refused(INVALID, "INVALID_FIELD") as seen:
            await world.start_parity(vectors=vectors, model_version="models/m/versions/1")
        assert set(seen[0].violations) == {"parity_job.model_version", "parity_job.vectors.feature_columns"}
    assert job.status.state == jobs.JOB_STATE_SUCCEEDED, job
    assert (job.status.total_count, dict(job.status.skipped_counts)) == (60, {"NO_FEATURE_READ_TIME": 1})
    found = {each.feature: each for each in job.features}
    assert found["arrivals.right"].different_count == found["now.doubled"].different_count == 0
    assert {each.compared_count for each in job.features} == {60}
    assert found["arrivals.zoned"].suspected_shift.ToTimedelta() == timedelta(hours=-4)
    assert found["arrivals.shifted"].suspected_shift.ToTimedelta() == timedelta(hours=-1.5)
    wrong = [f"row {number}" for number, at in enumerate(TIMES) if known_early(at) != newest(at)]
    late = found["arrivals.late"]
    assert late.different_count == len(wrong) > 10
    assert list(late.example_prediction_ids) == wrong[:20]
    assert 1 <= late.largest_difference <= 97
    assert (failed.status.state, failed.status.error.code) == (jobs.JOB_STATE_FAILED, PRECONDITION.value[0])
    assert 'column "wrong": want this column, got right' in failed.status.error.message


@pytest.mark.rpc(f"{JOBS}/CreateParityJob", "error")
@pytest.mark.rpc(f"{JOBS}/GetParityJob", "error")
@pytest.mark.rpc(f"{JOBS}/ListParityJobs", "error")
@pytest.mark.rpc(f"{JOBS}/CancelParityJob", "error")
async def test_parity_without_peers_fails_and_says_so(tmp_path: Path, redis: RedisProcess) -> None:
    async with running_features(tmp_path, redis_url=f"unix://{redis.socket}", job_poll_s=0.05) as features:
        world = OfflineWorld(features, tmp_path)
        name = await world.start_parity()
        job = await world.compared(name)
        assert job.status.state == jobs.JOB_STATE_FAILED
        assert job.status.error.code == grpc.StatusCode.UNAVAILABLE.value[0]
        await refuses(world.jobs.CancelParityJob(job_pb.CancelParityJobRequest(name=name)), (PRECONDITION, "JOB_ENDED"))
        await refuses(world.start_parity(model_version="flight-delay"), (INVALID, "INVALID_FIELD"))
        await refuses(world.start_parity(max_row_count=-1), (INVALID, "INVALID_FIELD"))
        await refuses(world.compared("parityJobs/none"), (NOT_FOUND, "RESOURCE_NOT_FOUND"))
        await refuses(world.jobs.ListParityJobs(job_pb.ListParityJobsRequest(page_size=-1)), (INVALID, "INVALID_FIELD"))
