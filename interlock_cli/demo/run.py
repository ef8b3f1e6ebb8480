"""`interlock demo`: from the flights to two versions in service, and how good their answers are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from rich.console import Console

from interlock_cli.demo.cache import TrainedVersion, cached_version, train_version
from interlock_cli.demo.data import LATER, SPRING, SPRING_AND_SUMMER, DemoDataMissing, Flights, Window, load_flights
from interlock_cli.demo.failure import DemoFailed
from interlock_cli.demo.publish import MODEL, Published, publish
from interlock_cli.demo.quality import judge
from interlock_cli.demo.report import DemoReport, VersionResult, stopwatch
from interlock_cli.demo.traffic import Answer, PredictionDoor, probabilities_of
from interlock_cli.demo.train import TOLERANCE, run_onnx
from interlock_cli.demo.version import later_quality, training_late_share
from interlock_sdk.client import DEFAULT_TARGET, connect
from interlock_sdk.errors import CallError, DeploymentFailed, DeploymentNotReady
from interlock_sdk.onnx_export import PROBABILITIES_OUTPUT

WINDOWS = (SPRING, SPRING_AND_SUMMER)

_OPEN_TIMEOUT_S = 30.0
_HTTP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What can be chosen."""

    state_folder: Path
    # Host and port of the edge.
    target: str = DEFAULT_TARGET
    # Later flights to send, spread evenly over their time.
    flight_count: int = 4_000
    # Requests in flight.
    concurrency: int = 16


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo found out, for those who do not read tables."""

    all_later: tuple[VersionResult, ...]
    through_the_door: tuple[VersionResult, ...]
    # Farthest that an answer was from the model called directly, as a probability.
    largest_difference: float


async def run_demo(options: DemoOptions, console: Console) -> DemoResult:
    """Runs the demo against a suite that is up.

    Raises DemoFailed with one line that says what stands in the way.
    """
    report = DemoReport(console)
    try:
        return await _run(options, report)
    except (CallError, DeploymentFailed, DeploymentNotReady, DemoDataMissing) as error:
        raise DemoFailed(str(error)) from error


async def _run(options: DemoOptions, report: DemoReport) -> DemoResult:
    flights = _read_flights(report)
    trained = [_trained(window, flights, options.state_folder, report) for window in WINDOWS]
    async with connect(options.target) as client:
        with report.doing("registering, deploying, waiting until both versions are READY"):
            published = await publish(client, trained, report.done)
    sample = flights.within(LATER).spread(options.flight_count)
    answers = await _send(options, sample, published, report)
    serving = dict(zip(published.version_ids, trained, strict=True))
    result = _judged(serving, sample, answers)
    _show(result, report)
    return result


def _read_flights(report: DemoReport) -> Flights:
    with report.doing("reading the flights of 2013"), stopwatch() as seconds:
        flights = load_flights()
        report.done(
            f"{len(flights) + flights.left_out_count:,} flights read in {seconds():.1f} s, of which "
            f"{flights.left_out_count:,} never arrived as planned (cancelled or diverted) and are left out"
        )
    return flights


def _trained(window: Window, flights: Flights, state_folder: Path, report: DemoReport) -> TrainedVersion:
    folder = state_folder / "demo"
    if (cached := cached_version(window, folder)) is not None:
        report.done(f"{window.name}: trained before")
        return cached
    with report.doing(f"{window.name}: training"), stopwatch() as seconds:
        version = train_version(window, flights, folder)
        count = version.description.baseline.row_count
        report.done(f"{window.name}: trained on {count:,} flights, exported and checked in {seconds():.1f} s")
    return version


async def _send(options: DemoOptions, sample: Flights, published: Published, report: DemoReport) -> list[Answer]:
    limits = httpx.Limits(max_connections=options.concurrency, max_keepalive_connections=options.concurrency)
    async with httpx.AsyncClient(
        base_url=f"http://{options.target}", limits=limits, timeout=_HTTP_TIMEOUT_S, trust_env=False
    ) as http:
        door = PredictionDoor(http, MODEL)
        with report.doing("waiting for the door"):
            await door.wait_until_open(sample, route_epoch=published.route_epoch, timeout_s=_OPEN_TIMEOUT_S)
        with report.counting("later flights through the REST door", len(sample)) as advance, stopwatch() as seconds:
            answers = await door.send(sample, concurrency=options.concurrency, on_answer=advance)
            report.answers(answers, seconds())
    return answers


def _judged(serving: Mapping[str, TrainedVersion], sample: Flights, answers: Sequence[Answer]) -> DemoResult:
    """Judges the answers per version; one by a version that the demo did not train is a failure."""
    if foreign := {answer.version for answer in answers} - set(serving):
        raise DemoFailed(
            f"{MODEL} is also answered by version {', '.join(sorted(foreign))}, which the demo did not make"
        )
    all_later, through_the_door, differences = [], [], []
    for version_id, trained in serving.items():
        share = training_late_share(trained.description)
        all_later.append(VersionResult(version_id, trained.window.name, later_quality(trained.description)))
        positions = np.array(
            [index for index, answer in enumerate(answers) if answer.version == version_id], dtype=np.int64
        )
        if not positions.size:
            continue
        answered = sample.take(positions)
        got = probabilities_of([answers[position] for position in positions])
        direct = run_onnx(trained.artifact_path.read_bytes(), answered.features)[PROBABILITIES_OUTPUT][:, 1]
        differences.append(float(np.abs(got - direct).max()))
        through_the_door.append(VersionResult(version_id, trained.window.name, judge(got, answered.late, share)))
    if max(differences) > TOLERANCE:
        raise DemoFailed(f"an answer is {max(differences):g} away from the model called directly")
    return DemoResult(tuple(all_later), tuple(through_the_door), max(differences))


def _show(result: DemoResult, report: DemoReport) -> None:
    report.done(f"every answer equals the model called directly, to within {result.largest_difference:.0e}")
    report.qualities(f"All flights from {LATER.first} to {LATER.last}, judged when trained", result.all_later)
    report.qualities("Those sent, judged by the answers that came back", result.through_the_door)
    report.footnotes()
