"""Which of several labels holds, and what a label means to its version."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from services.monitor.convert.version import version_from_proto
from services.monitor.domain.feedback import Feedback, Meaning, Outcome, judge_all, meaning
from services.monitor.domain.version_info import Task, VersionInfo
from tests.fakes.monitor_registry import model_version

INFO = version_from_proto(model_version())


def _new(value: float, event_us: int) -> Feedback:
    return Feedback(b"x" * 16, "", value, None, event_us, event_given=True)


@given(st.permutations([(1.0, 10), (0.0, 20), (1.0, 30), (0.0, 30)]))
def test_whatever_the_order_the_newest_event_holds_and_sending_all_again_converges(
    order: list[tuple[float, int]],
) -> None:
    _, changes = judge_all({}, [_new(*one) for one in order])
    (change,) = changes.values()
    assert change.feedback.event_us == 30
    last = next(value for value, event_us in reversed(order) if event_us == 30)
    assert change.feedback.number == last


def test_each_of_a_batch_is_judged_after_those_before_it() -> None:
    outcomes, _ = judge_all({}, [_new(1, 10), _new(1, 10), _new(0, 5), _new(0, 11), _new(1, 11)])
    wanted = [Outcome.TAKEN, Outcome.DUPLICATE, Outcome.OLDER, Outcome.REPLACED, Outcome.REPLACED]
    assert outcomes == wanted


def test_a_label_means_a_class_or_a_number() -> None:
    assert meaning(None, "fraud", INFO) == Meaning(1.0, "fraud")
    assert meaning(0.0, None, INFO) == Meaning(0.0, "fine")
    for number, text in ((0.5, None), (2.0, None), (-1.0, None), (None, "Fraud")):
        assert str(meaning(number, text, INFO)).startswith("want ")
    regression = VersionInfo("m", "1", "", task=Task.REGRESSION)
    assert meaning(2.5, None, regression) == Meaning(2.5)
    assert str(meaning(None, "many", regression)).startswith("want a number")


def test_rewards_of_several_metrics_do_not_meet() -> None:
    rewards = [
        Feedback(b"x" * 16, metric, value, None, 1, event_given=True)
        for metric, value in itertools.product(("a", "b"), (1.0, 2.0))
    ]
    assert judge_all({}, rewards)[0] == [Outcome.TAKEN, Outcome.REPLACED, Outcome.TAKEN, Outcome.REPLACED]
