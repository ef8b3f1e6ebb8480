"""`interlock demo`: from the flights to two versions in service, the second on live features, and how good they are."""

import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import httpx
import pandas as pd
from interlock.features.v1 import feature_view_service_pb2
from rich.console import Console

from interlock_cli.definitions.reading import read_definitions
from interlock_cli.demo.alone import alone
from interlock_cli.demo.cache import TrainedVersion, cached_version
from interlock_cli.demo.data import (
    LABELS,
    LATER,
    RECIPES,
    DemoDataMissing,
    Flights,
    Recipe,
    load_flights,
    load_weather,
)
from interlock_cli.demo.failure import DemoFailed
from interlock_cli.demo.live import with_live_features
from interlock_cli.demo.publish import MODEL, Published, publish
from interlock_cli.demo.record import Played, keep_played, kept_played
from interlock_cli.demo.replay import (
    LANDING_VIEWS,
    REPLAYED,
    WEATHER_VIEW,
    Scenario,
    departure_times,
    hours,
    known_before,
    landing_rows,
    landing_times,
    shift_to,
    weather_rows,
)
from interlock_cli.demo.report import DemoReport, stopwatch
from interlock_cli.demo.results import DemoResult, judge_answers
from interlock_cli.demo.traffic import PredictionDoor, request_bodies
from interlock_cli.demo.verdict import Verdict, verdict_of, whole_hours
from interlock_sdk.client import DEFAULT_TARGET, Client, connect
from interlock_sdk.errors import CallError, DeploymentFailed, DeploymentNotReady
from interlock_sdk.features import FeatureRow

DEFINITIONS = Path(__file__).with_name("features.yaml")

_OPEN_TIMEOUT_S = 30.0
_HTTP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What can be chosen."""

    state_folder: Path
    # Host and port of the edge.
    target: str = DEFAULT_TARGET
    # Replayed flights that ask for a prediction, spread evenly over their time; all of them land.
    flight_count: int = 4_000
    # Requests in flight. Few: on two cores more would only wait, some for longer than a fetch of features may take.
    concurrency: int = 4

    @property
    def folder(self) -> Path:
        """Gives the demo's own folder."""
        return self.state_folder / "demo"


async def run_demo(options: DemoOptions, console: Console) -> DemoResult:
    """Runs the demo against a suite that is up.

    Raises DemoFailed with one line that says what stands in the way.
    """
    report = DemoReport(console)
    try:
        with alone(options.folder):
            return await _run(options, report)
    except (CallError, DeploymentFailed, DeploymentNotReady, DemoDataMissing) as error:
        hint = "; is the suite up? `interlock up` starts it" if _is_unreachable(error) else ""
        raise DemoFailed(f"{error}{hint}") from error


def _is_unreachable(error: Exception) -> bool:
    return isinstance(error, CallError) and error.code is grpc.StatusCode.UNAVAILABLE and not error.reason


async def _run(options: DemoOptions, report: DemoReport) -> DemoResult:
    flights, weather = _read_data(report)
    trained = [_trained(recipe, flights, weather, options.folder, report) for recipe in RECIPES]
    sample = flights.within(REPLAYED).spread(options.flight_count)
    async with connect(options.target) as client:
        await _define(client, report)
        with report.doing("registering, deploying, waiting until both versions are READY"):
            published = await publish(client, trained, report.done)
        played = await _played(options, client, published, (sample, flights, weather), report)
        verdicts = await _verdicts(client, sample, played, report)
    serving = dict(zip(published.version_ids, trained, strict=True))
    result = judge_answers(
        serving,
        with_live_features(sample, flights, weather),
        [played.answers[position] for position in range(len(sample))],
    )
    _show(result, report)
    report.verdicts(verdicts, options.target)
    return result


async def _define(client: Client, report: DemoReport) -> None:
    """Applies the feature views that version 2 fetches from."""
    files = read_definitions([DEFINITIONS])
    answer = await client.feature_views.apply(files.entities, files.views)
    changed = sum(change.kind != feature_view_service_pb2.CHANGE_KIND_UNCHANGED for change in answer.changes)
    report.done(f"{len(files.views)} feature views {'applied' if changed else 'are there already'}")


def _read_data(report: DemoReport) -> tuple[Flights, pd.DataFrame]:
    with report.doing("reading the flights of 2013"), stopwatch() as seconds:
        flights, weather = load_flights(), load_weather()
        report.done(
            f"{len(flights) + flights.left_out_count:,} flights read in {seconds():.1f} s, of which "
            f"{flights.left_out_count:,} never arrived as planned (cancelled or diverted) and are left out"
        )
    return flights, weather


def _trained(
    recipe: Recipe, flights: Flights, weather: pd.DataFrame, folder: Path, report: DemoReport
) -> TrainedVersion:
    if (cached := cached_version(recipe, folder)) is not None:
        report.done(f"{recipe.name}: trained before")
        return cached
    with report.doing(f"{recipe.name}: training"), stopwatch() as seconds:
        # Here, because it imports scikit-learn, which takes a second that a second start need not wait.
        from interlock_cli.demo.build import train_version  # noqa: PLC0415

        if recipe.live:
            flights = with_live_features(flights, flights, weather)
        version = train_version(recipe, flights, folder)
        count = version.description.baseline.row_count
        report.done(f"{recipe.name}: trained on {count:,} flights, exported and checked in {seconds():.1f} s")
    return version


async def _played(
    options: DemoOptions,
    client: Client,
    published: Published,
    data: tuple[Flights, Flights, pd.DataFrame],
    report: DemoReport,
) -> Played:
    """Replays the flights, or what an earlier start has left of them."""
    sample, flights, weather = data
    shift = shift_to(datetime.now(UTC).date())
    kept = kept_played(options.folder, published.version_ids, len(sample))
    played = kept or Played(shift, published.version_ids, len(sample))
    async with _door(options) as door:
        bodies = list(request_bodies(sample, MODEL, played.shift))
        first = {name: value for name, value in bodies[0].items() if name != "as_of_time"}
        with report.doing("waiting for the door"):
            await door.wait_until_open(first, route_epoch=published.route_epoch, timeout_s=_OPEN_TIMEOUT_S)
        if played.is_whole:
            report.done(f"{len(sample):,} flights have been replayed before")
            return played
        scenario = Scenario(sample, flights, weather, played.shift)
        with report.counting("flights through the REST door, as if they left today", len(bodies)) as advance:
            async for step in _replay(client, door, bodies, scenario, played):
                keep_played(options.folder, played := step.played)
                report.took(step.elapsed_s)
                for _ in step.played.answers.keys() & step.positions:
                    advance()
    report.answers([played.answers[position] for position in range(len(bodies))])
    return played


def _door(options: DemoOptions) -> PredictionDoor:
    # Made once: each client would read all certificates anew.
    certificates = ssl.create_default_context()

    def open_http() -> httpx.AsyncClient:
        # A proxy of the environment is not for calls to the stack.
        address = f"http://{options.target}"
        return httpx.AsyncClient(base_url=address, timeout=_HTTP_TIMEOUT_S, trust_env=False, verify=certificates)

    return PredictionDoor(open_http, MODEL, options.concurrency)


@dataclass(frozen=True, slots=True)
class _Step:
    """An hour that has been replayed, and how long its answers took."""

    played: Played
    positions: list[int]
    elapsed_s: float


async def _replay(
    client: Client, door: PredictionDoor, bodies: list[dict[str, object]], scenario: Scenario, played: Played
) -> AsyncIterator[_Step]:
    """Pushes what becomes known, asks for predictions and tells what was true, hour by hour."""
    sample, shift = scenario.sample, scenario.shift
    answers = dict(played.answers)
    landed_at = landing_times(sample, shift)
    for index, hour in enumerate(hours(scenario)):
        if index < played.hour_count:
            continue
        start, end = hour.start + shift, hour.start + shift + timedelta(hours=1)
        if index == 0:
            await _push(client, *known_before(scenario, hour.start), shift)
        await _push(client, hour.landings, hour.weather, shift)
        with stopwatch() as seconds:
            got = await door.send([bodies[position] for position in hour.positions])
        answers |= dict(zip(hour.positions, got, strict=True))
        # A flight that lands before it was due to leave is due to leave in the hour in which it lands.
        landed = [p for p in answers if landed_at[p] < end and (landed_at[p] >= start or p in hour.positions)]
        await door.label([(answers[p].prediction_id, LABELS[sample.late[p]], landed_at[p]) for p in sorted(landed)])
        yield _Step(replace(played, answers=dict(answers), hour_count=index + 1), hour.positions, seconds())


async def _verdicts(client: Client, sample: Flights, played: Played, report: DemoReport) -> list[Verdict]:
    between = whole_hours(departure_times(sample, played.shift))
    verdicts = []
    with report.doing("waiting until the monitor has joined all labels"):
        for version_id in played.version_ids:
            count = sum(answer.version == version_id for answer in played.answers.values())
            verdicts.append(await verdict_of(client, f"models/{MODEL}/versions/{version_id}", between, count))
    return verdicts


async def _push(client: Client, landings: Flights, weather: pd.DataFrame, shift: timedelta) -> None:
    rows: dict[str, list[FeatureRow]] = {view: landing_rows(landings, view, shift) for view in LANDING_VIEWS}
    rows[WEATHER_VIEW] = weather_rows(weather, shift)
    for view, pushed in rows.items():
        refused = [result for result in await client.features.push(view, pushed) if result.HasField("error")]
        if refused:
            raise DemoFailed(f"{view} refused {len(refused)} rows: {refused[0].error.message}")


def _show(result: DemoResult, report: DemoReport) -> None:
    difference = f"within {result.largest_difference:.0e} of" if result.largest_difference else "exactly"
    report.done(f"every probability is {difference} what the model gives when it is called directly")
    if result.degraded_count:
        report.line(
            f"    but for {result.degraded_count:,} that had to do without live features: the machine was too busy"
        )
    report.qualities(f"All flights from {LATER.first} to {LATER.last}, judged when trained", result.all_later)
    if result.foreign_count:
        report.line(f"{result.foreign_count:,} answers came from versions that are not the demo's and are not judged")
    report.qualities("Those sent, judged by the answers that came back", result.through_the_door)
    report.footnotes()
