"""How answers are judged, and what is shown."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from interlock_cli.demo.build import train_version
from interlock_cli.demo.cache import TrainedVersion
from interlock_cli.demo.data import LATER, RECIPES, Flights
from interlock_cli.demo.direct import run_onnx
from interlock_cli.demo.failure import DemoFailed
from interlock_cli.demo.quality import Quality, judge
from interlock_cli.demo.report import DemoReport
from interlock_cli.demo.results import VersionResult, judge_answers
from interlock_cli.demo.traffic import Answer

QUALITY = Quality(1_234, 0.2, auc=0.62, brier=0.1564, prior_brier=0.1615, hindsight_brier=0.1597)


@pytest.fixture(scope="module")
def trained(all_flights: Flights, tmp_path_factory: pytest.TempPathFactory) -> TrainedVersion:
    return train_version(RECIPES[0], all_flights, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def sent(all_flights: Flights) -> Flights:
    return all_flights.within(LATER).spread(300)


@pytest.fixture(scope="module")
def probability(trained: TrainedVersion, sent: Flights) -> list[float]:
    outputs = run_onnx(trained.artifact_path.read_bytes(), trained.recipe, sent.features)
    return [float(value) for value in outputs["probabilities"][:, 1]]


def test_each_version_is_judged_by_its_own_answers(
    trained: TrainedVersion, sent: Flights, probability: list[float]
) -> None:
    answers = [Answer("", "2" if index % 10 == 0 else "1", value, 0.01) for index, value in enumerate(probability)]
    result = judge_answers({"1": trained, "2": trained, "3": trained}, sent, answers)
    assert [version.quality.flight_count for version in result.through_the_door] == [270, 30]
    tenth = np.arange(0, 300, 10)
    assert result.through_the_door[1].quality.brier == pytest.approx(
        judge(np.array(probability)[tenth], sent.late[tenth], 0.2).brier
    )
    assert [version.quality.flight_count for version in result.all_later] == [109_619] * 3
    assert result.largest_difference < 1e-6


def test_an_answer_that_the_model_would_not_give_is_a_failure(
    trained: TrainedVersion, sent: Flights, probability: list[float]
) -> None:
    answers = [Answer("", "1", value, 0.01) for value in probability]
    answers[7] = Answer("", "1", probability[7] + 0.001, 0.01)
    with pytest.raises(DemoFailed, match=r"an answer is 0.001 away from the model called directly"):
        judge_answers({"1": trained}, sent, answers)


def test_answers_by_versions_of_others_are_counted_and_not_judged(
    trained: TrainedVersion, sent: Flights, probability: list[float]
) -> None:
    answers = [Answer("", "9" if index < 20 else "1", value, 0.01) for index, value in enumerate(probability)]
    result = judge_answers({"1": trained}, sent, answers)
    assert result.foreign_count == 20
    assert [version.quality.flight_count for version in result.through_the_door] == [280]


@pytest.mark.parametrize("terminal", [True, False])
def test_tables_show_auc_and_brier_next_to_the_base_rates(*, terminal: bool) -> None:
    stream = io.StringIO()
    report = DemoReport(Console(file=stream, force_terminal=terminal, width=120))
    report.qualities("Later", [VersionResult("1", "spring", QUALITY)])
    plain = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    (row,) = [line for line in plain.splitlines() if "spring" in line]
    assert row.split() == ["1", "spring", "1,234", "0.6200", "0.1564", "0.1615", "0.1597"]


def test_piped_output_is_plain_lines() -> None:
    stream = io.StringIO()
    report = DemoReport(Console(file=stream, width=60))
    with report.doing("working"), report.counting("counting", 2) as advance:
        advance()
        advance()
    report.took(1.0)
    report.answers([Answer("", "1", 0.2, 0.004)] * 2)
    report.qualities("Later", [VersionResult("1", "spring", QUALITY)])
    written = stream.getvalue()
    assert "\x1b" not in written
    assert written.isascii()
    assert "2 flights through the REST door in 1.0 s: 2/s, p50 4.0 ms, p99 4.0 ms\n" in written


def test_a_table_is_not_cut_where_the_output_is_narrow() -> None:
    stream = io.StringIO()
    DemoReport(Console(file=stream, width=40)).qualities("Later", [VersionResult("1", "spring and summer", QUALITY)])
    assert "spring and summer" in stream.getvalue()
    assert "0.1597" in stream.getvalue()


def test_progress_is_drawn_on_a_terminal() -> None:
    stream = io.StringIO()
    report = DemoReport(Console(file=stream, force_terminal=True, width=100))
    with report.counting("flights", 2) as advance:
        advance()
        advance()
    assert "2/2" in stream.getvalue()
