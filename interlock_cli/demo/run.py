"""`interlock demo`: from the flights to two versions in service, and how good their answers are."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
from rich.console import Console

from interlock_cli.demo.cache import TrainedVersion, cached_version
from interlock_cli.demo.data import LATER, SPRING, SPRING_AND_SUMMER, DemoDataMissing, Flights, Window, load_flights
from interlock_cli.demo.failure import DemoFailed
from interlock_cli.demo.publish import MODEL, Published, publish
from interlock_cli.demo.report import DemoReport, stopwatch
from interlock_cli.demo.results import DemoResult, judge_answers
from interlock_cli.demo.traffic import Answer, PredictionDoor
from interlock_sdk.client import DEFAULT_TARGET, connect
from interlock_sdk.errors import CallError, DeploymentFailed, DeploymentNotReady

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


async def run_demo(options: DemoOptions, console: Console) -> DemoResult:
    """Runs the demo against a suite that is up.

    Raises DemoFailed with one line that says what stands in the way.
    """
    report = DemoReport(console)
    try:
        return await _run(options, report)
    except (CallError, DeploymentFailed, DeploymentNotReady, DemoDataMissing) as error:
        hint = "; is the suite up? `interlock up` starts it" if _is_unreachable(error) else ""
        raise DemoFailed(f"{error}{hint}") from error


def _is_unreachable(error: Exception) -> bool:
    return isinstance(error, CallError) and error.code is grpc.StatusCode.UNAVAILABLE and not error.reason


async def _run(options: DemoOptions, report: DemoReport) -> DemoResult:
    flights = _read_flights(report)
    trained = [_trained(window, flights, options.state_folder, report) for window in WINDOWS]
    async with connect(options.target) as client:
        with report.doing("registering, deploying, waiting until both versions are READY"):
            published = await publish(client, trained, report.done)
    sample = flights.within(LATER).spread(options.flight_count)
    answers = await _send(options, sample, published, report)
    serving = dict(zip(published.version_ids, trained, strict=True))
    result = judge_answers(serving, sample, answers)
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
        # Here, because it imports scikit-learn, which takes a second that a second start need not wait.
        from interlock_cli.demo.build import train_version  # noqa: PLC0415

        version = train_version(window, flights, folder)
        count = version.description.baseline.row_count
        report.done(f"{window.name}: trained on {count:,} flights, exported and checked in {seconds():.1f} s")
    return version


async def _send(options: DemoOptions, sample: Flights, published: Published, report: DemoReport) -> list[Answer]:
    # Made once: each client would read all certificates anew.
    certificates = ssl.create_default_context()

    def open_http() -> httpx.AsyncClient:
        # A proxy of the environment is not for calls to the stack.
        address = f"http://{options.target}"
        return httpx.AsyncClient(base_url=address, timeout=_HTTP_TIMEOUT_S, trust_env=False, verify=certificates)

    door = PredictionDoor(open_http, MODEL)
    with report.doing("waiting for the door"):
        await door.wait_until_open(sample, route_epoch=published.route_epoch, timeout_s=_OPEN_TIMEOUT_S)
    with report.counting("later flights through the REST door", len(sample)) as advance, stopwatch() as seconds:
        answers = await door.send(sample, concurrency=options.concurrency, on_answer=advance)
        report.answers(answers, seconds())
    return answers


def _show(result: DemoResult, report: DemoReport) -> None:
    difference = f"within {result.largest_difference:.0e} of" if result.largest_difference else "exactly"
    report.done(f"every probability is {difference} what the model gives when it is called directly")
    report.qualities(f"All flights from {LATER.first} to {LATER.last}, judged when trained", result.all_later)
    if result.foreign_count:
        report.line(f"{result.foreign_count:,} answers came from versions that are not the demo's and are not judged")
    report.qualities("Those sent, judged by the answers that came back", result.through_the_door)
    report.footnotes()
