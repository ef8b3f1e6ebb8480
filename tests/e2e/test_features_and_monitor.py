"""What version 2 was served, what offline says of it, and what the monitor says: each beside the same thing computed anew.

The tests look at the replay of the demo that is in the session's stack, and change nothing in it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from interlock.features.v1 import feature_job_pb2
from interlock.monitor.v1 import analysis_pb2, prediction_log_service_pb2
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from interlock_cli.demo.data import LABELS, LIVE, Flights, load_flights, load_weather
from interlock_cli.demo.live import live_features
from interlock_cli.demo.publish import MODEL
from interlock_cli.demo.record import Played, kept_played
from interlock_cli.demo.replay import REPLAYED, departure_times, entity_keys
from interlock_cli.demo.verdict import whole_hours
from interlock_cli.demo.version import SOURCES
from interlock_sdk.client import connect
from tests.e2e.conftest import DEMO_FLIGHTS, Stacks
from tests.e2e.flight import BODY
from tests.e2e.stack import Stack

pytestmark = pytest.mark.timeout(300)

VERSION = f"models/{MODEL}/versions/2"
# The demo adds delays up in another order than the service, and the model takes single precision.
RELATIVE, ABSOLUTE = 1e-5, 1e-4
# Both add up in an order of their own.
METRIC_TOLERANCE = 1e-6
UNKNOWN_ID = "01a1fe60-5440-77ea-8b6a-23f9b003f384"


@dataclass(frozen=True)
class Replay:
    """The demo's replay in a stack; `known` has the features LIVE of each flight, NaN where nothing was known."""

    stack: Stack
    sample: Flights
    known: pd.DataFrame
    played: Played

    @property
    def departures(self) -> list[datetime]:
        return departure_times(self.sample, self.played.shift)

    @property
    def between(self) -> tuple[datetime, datetime]:
        """The hours of the replay."""
        return whole_hours(self.departures)


@pytest.fixture(scope="module")
def replay(stacks: Stacks) -> Replay:
    stack = stacks.of("envoy")
    flights = load_flights()
    sample = flights.within(REPLAYED).spread(DEMO_FLIGHTS)
    played = kept_played(stack.folder / "demo", ("1", "2"), len(sample))
    assert played is not None
    assert played.is_whole
    return Replay(stack, sample, live_features(sample, flights, load_weather()), played)


async def test_version_2_was_served_what_earlier_landings_say(replay: Replay) -> None:
    answers = {at: one for at, one in replay.played.answers.items() if one.version == "2" and not one.degraded}
    assert len(answers) > DEMO_FLIGHTS // 20
    columns = ", ".join(f"features.{name} AS {name}" for name in LIVE)
    logged = await _logged(replay, f"SELECT prediction_id::VARCHAR AS id, {columns} FROM predictions")
    got = logged.set_index("id").loc[[one.prediction_id for one in answers.values()], list(LIVE)]
    want = replay.known.iloc[list(answers)]
    np.testing.assert_allclose(got.to_numpy(float), want.to_numpy(float), rtol=RELATIVE, atol=ABSOLUTE)
    # Not all of it is missing.
    assert (np.isfinite(want.to_numpy(float)).mean(axis=0) > 0.3).all()


async def test_offline_joins_give_the_same(replay: Replay) -> None:
    asked = pd.DataFrame(entity_keys(replay.sample)).assign(departure=replay.departures)
    async with connect(replay.stack.edge) as client:
        features = [SOURCES[name] for name in LIVE]
        joined = await client.offline_features.join(asked, features, time_column="departure")
    got = joined[[feature.replace(".", "__") for feature in features]]
    np.testing.assert_allclose(
        got.to_numpy(float), replay.known[list(LIVE)].to_numpy(float), rtol=RELATIVE, atol=ABSOLUTE
    )


async def test_parity_finds_no_difference(replay: Replay) -> None:
    start, end = replay.between
    async with connect(replay.stack.edge) as client:
        offline = client.offline_features
        job = await offline.wait(await offline.check_parity(VERSION, start=start, end=end))
    assert job.status.state == feature_job_pb2.JOB_STATE_SUCCEEDED, job.status.error.message
    assert {found.feature for found in job.features} == set(SOURCES.values())
    for found in job.features:
        assert found.compared_count > DEMO_FLIGHTS // 20
        assert found.different_count == 0, found


async def test_every_label_is_joined_and_quality_is_that_of_the_rows(replay: Replay) -> None:
    labels = {one.prediction_id: replay.sample.late[at] for at, one in replay.played.answers.items()}
    for version in ("1", "2"):
        report = await _quality(replay, version)
        logged = await _logged(
            replay,
            "SELECT prediction_id::VARCHAR AS id, label, probabilities[2] AS late FROM predictions "
            f"WHERE version = '{version}' AND label IS NOT NULL",
        )
        replayed = logged[logged["id"].isin(labels)]
        assert len(replayed) == sum(one.version == version for one in replay.played.answers.values())
        assert (replayed["label"] == replayed["id"].map(labels)).all()
        assert report.labelled_count == len(logged)
        _check_quality(report, logged["label"].to_numpy(int), logged["late"].to_numpy(float))


def test_labels_that_are_wrong_are_refused_one_by_one(stacks: Stacks) -> None:
    stack = stacks.of("envoy")
    # Before the replay, so that no window of it gets more.
    body = {**BODY, "as_of_time": _text(datetime.now().astimezone() - timedelta(days=9))}
    known = httpx.post(f"http://{stack.edge}/v1/predict", json=body, timeout=10).json()["prediction_id"]
    # Only what is in the log can be held against a label.
    record = f"http://{stack.edge}/v1/predictionRecords/{known}"
    stack.wait_until(lambda: httpx.get(record, timeout=10).is_success, "the prediction is in the log")
    answer = _send(stack, [{"prediction_id": known, "lable": "late"}])
    assert (answer.status_code, "lable" in answer.text) == (400, True)
    future, ago = (_text(datetime.now().astimezone() + timedelta(days=days)) for days in (400, -400))
    wrong: dict[str, Mapping[str, Any]] = {
        "prediction_id": {"prediction_id": "42", "label": 1},
        "label": {"prediction_id": known, "label": 7},
        "of the future": {"prediction_id": known, "label": 1, "event_time": future},
        "not before the prediction": {"prediction_id": known, "label": 1, "event_time": ago},
    }
    right = [{"prediction_id": UNKNOWN_ID, "label": 1}, {"prediction_id": known, "label": "late"}]
    results = _send(stack, [*wrong.values(), *right]).json()["results"]
    for named, result in zip(wrong, results, strict=False):
        assert result["outcome"] == "FEEDBACK_OUTCOME_REFUSED"
        assert named in result["error"]["message"]
    outcomes = [result["outcome"] for result in results[len(wrong) :]]
    assert outcomes[0] == "FEEDBACK_OUTCOME_WAITING"
    assert outcomes[1] in ("FEEDBACK_OUTCOME_TAKEN", "FEEDBACK_OUTCOME_WAITING")


def test_of_ten_labels_for_one_prediction_one_holds(stacks: Stacks) -> None:
    stack = stacks.of("envoy")
    made = datetime.now().astimezone() - timedelta(days=9)
    said = httpx.post(f"http://{stack.edge}/v1/predict", json={**BODY, "as_of_time": _text(made)}, timeout=10).json()
    one = said["prediction_id"]
    labels = [
        {"prediction_id": one, "label": LABELS[n % 2], "event_time": _text(made + timedelta(hours=hour))}
        for n, hour in enumerate((3, 1, 4, 1, 5, 9, 2, 6, 5, 3))
    ]
    assert all("error" not in result for result in _send(stack, labels).json()["results"])

    def holds() -> bool:
        found = httpx.get(f"http://{stack.edge}/v1/predictionRecords/{one}", timeout=10)
        return found.is_success and found.json()["prediction_record"].get("label") == {"string_value": "late"}

    def logged() -> bool:
        query = f"SELECT label, round(label_delay_s) AS delay_s FROM predictions WHERE prediction_id = '{one}'"
        rows = json.loads(stack.succeed("log", "query", query, "--model", MODEL, "--format", "json"))
        return bool(rows == [{"label": 1, "delay_s": 9 * 3_600}])

    # The one after nine hours. The record shows a label as it came, the log once it is joined.
    stack.wait_until(holds, "the label with the newest event time is there")
    stack.wait_until(logged, "it is the label in the log")


async def _quality(replay: Replay, version: str) -> analysis_pb2.QualityReport:
    start, end = replay.between
    scope = analysis_pb2.AnalysisScope(
        model_version=f"models/{MODEL}/versions/{version}", start_time=_stamp(start), end_time=_stamp(end)
    )
    async with connect(replay.stack.edge) as client:
        return await client.monitoring.quality(scope)


def _check_quality(report: analysis_pb2.QualityReport, label: Any, late: Any) -> None:
    found = {metric.name: metric.value for metric in report.metrics}
    assert found["brier"].estimate == pytest.approx(brier_score_loss(label, late), abs=METRIC_TOLERANCE)
    assert found["log_loss"].estimate == pytest.approx(log_loss(label, late), abs=METRIC_TOLERANCE)
    assert found["accuracy"].estimate == pytest.approx(np.mean((late > 0.5) == label), abs=METRIC_TOLERANCE)
    # From bins at most 0.0008 wide: a late flight and one on time in the same bin count half.
    edges = np.floor(np.arcsin(np.sqrt(late)) * (2_048 * 2 / np.pi))
    tied = (edges[label == 1][:, None] == edges[label == 0][None, :]).mean() / 2
    assert found["auc"].estimate == pytest.approx(roc_auc_score(label, late), abs=tied + METRIC_TOLERANCE)
    assert tied < 0.01
    for value in (found["auc"], found["brier"]):
        assert value.lower < value.estimate < value.upper


async def _logged(replay: Replay, sql: str) -> pd.DataFrame:
    start, end = replay.between
    request = prediction_log_service_pb2.QueryPredictionLogRequest(
        sql=sql, model=MODEL, max_row_count=1_000_000, start_time=_stamp(start), end_time=_stamp(end)
    )
    async with connect(replay.stack.edge) as client:
        content = b"".join([part.arrow_stream async for part in client.monitoring.query_log(request)])
    rows: pd.DataFrame = pa.ipc.open_stream(content).read_all().to_pandas()
    return rows


def _send(stack: Stack, feedback: Sequence[Mapping[str, Any]]) -> httpx.Response:
    return httpx.post(f"http://{stack.edge}/v1/feedback", json={"feedback": feedback}, timeout=10)


def _text(time: datetime) -> str:
    return time.isoformat()


def _stamp(time: datetime) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(time)
    return found
