"""The judge of the proof is itself proven: a good history passes, and each bug that is put into it is found by its name."""

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from tests.proof import oracle
from tests.proof.history import (
    OK,
    Answered,
    Asked,
    Cancelled,
    Cut,
    Event,
    FaultBegan,
    FaultEnded,
    Result,
    Unprocessed,
    judge,
)
from tests.proof.oracle import Row

History = list[Event]
COUNT = 200


def good_history() -> History:
    """Requests of one to three rows in batches, answered out of order, each by one of two versions."""
    draw = random.Random(7)
    events: History = []
    next_row = 0
    for start in range(0, COUNT, 8):
        batch = []
        for number in range(start, start + 8):
            rows = tuple(Row(next_row + at, draw.randrange(oracle.PAYLOADS)) for at in range(draw.choice((1, 1, 3))))
            next_row += len(rows)
            batch.append(Asked(number, start * 0.01, "oip", rows, version=draw.choice(("", "1", "2"))))
        events += batch
        for asked in draw.sample(batch, k=len(batch)):
            events.append(answer_to(asked, asked.version or draw.choice("12")))
    return events


def answer_to(asked: Asked, version: str) -> Answered:
    results = tuple(Result(oracle.answer(int(version), row), version) for row in asked.rows)
    return Answered(asked.id, asked.at + 0.005, OK, results=results, echoed=str(asked.id))


def answers(history: History) -> list[int]:
    """Where, in the history, the answers of one row are."""
    return [at for at, one in enumerate(history) if isinstance(one, Answered) and len(one.results) == 1]


def answer_at(history: History, at: int) -> Answered:
    found = history[at]
    assert isinstance(found, Answered)
    return found


def asked_for(history: History, answered: Answered) -> Asked:
    return next(one for one in history if isinstance(one, Asked) and one.id == answered.id)


def swap(history: History) -> None:
    first, second = answers(history)[3:5]
    one, other = answer_at(history, first), answer_at(history, second)
    history[first], history[second] = replace(one, results=other.results), replace(other, results=one.results)


def swap_rows(history: History) -> None:
    """Two rows of one request."""
    at = next(at for at, one in enumerate(history) if isinstance(one, Answered) and len(one.results) == 3)
    found = answer_at(history, at)
    history[at] = replace(found, results=(found.results[1], found.results[0], found.results[2]))


def swap_ids(history: History) -> None:
    at = answers(history)[0]
    history[at] = replace(answer_at(history, at), echoed="4711")


def drop(history: History) -> None:
    del history[answers(history)[5]]


def drop_row(history: History) -> None:
    at = answers(history)[5]
    history[at] = replace(answer_at(history, at), results=())


def twice(history: History) -> None:
    history.append(history[answers(history)[5]])


def twice_after_cancel(history: History) -> None:
    at = answers(history)[5]
    history.insert(at, Cancelled(answer_at(history, at).id, 0.0))
    history.append(history[at + 1])


def other_version(history: History) -> None:
    """The right version is named, and another one answered."""
    at = next(at for at in answers(history))
    found = answer_at(history, at)
    (result,) = found.results
    (row,) = asked_for(history, found).rows
    history[at] = replace(found, results=(replace(result, value=oracle.answer(3 - int(result.version), row)),))


def other_version_than_asked(history: History) -> None:
    at = next(at for at in answers(history) if asked_for(history, answer_at(history, at)).version)
    found = answer_at(history, at)
    history[at] = answer_to(asked_for(history, found), str(3 - int(found.results[0].version)))


def off_by_one(history: History) -> None:
    at = answers(history)[0]
    found = answer_at(history, at)
    value = found.results[0].value
    assert value is not None
    history[at] = replace(found, results=(replace(found.results[0], value=value ^ 1),))


def cut(history: History) -> None:
    at = answers(history)[2]
    history[at] = Cut(answer_at(history, at).id, 1.0)


def refuse(status: str, reason: str, after_s: float = 0.1) -> Callable[[History], None]:
    def change(history: History) -> None:
        at = answers(history)[2]
        found = answer_at(history, at)
        history[at] = Answered(found.id, asked_for(history, found).at + after_s, status, reason)

    return change


def answer_poison(history: History) -> None:
    at = answers(history)[0]
    asked = asked_for(history, answer_at(history, at))
    history[history.index(asked)] = replace(asked, rows=(asked.rows[0]._replace(poison=1),))


BUGS: dict[str, tuple[Callable[[History], None], str]] = {
    "two answers are swapped": (swap, "swapped"),
    "two rows of one answer are swapped": (swap_rows, "swapped"),
    "two request ids are swapped": (swap_ids, "swapped"),
    "an answer is dropped": (drop, "lost"),
    "a row is dropped": (drop_row, "lost"),
    "an answer comes twice": (twice, "doubled"),
    "an answer comes twice after it was cancelled": (twice_after_cancel, "doubled"),
    "the other version answers": (other_version, "version"),
    "a pinned version is not kept": (other_version_than_asked, "version"),
    "a value is off by one": (off_by_one, "wrong"),
    "a poisoned row is answered": (answer_poison, "wrong"),
    "a connection is cut": (cut, "lost"),
    "an internal error": (refuse("INTERNAL", "INTERNAL"), "blamed"),
    "a good row is refused": (refuse("INVALID_ARGUMENT", "MODEL_REFUSED"), "blamed"),
    "a refusal without a reason": (refuse("RESOURCE_EXHAUSTED", ""), "blamed"),
    "unavailable with nothing broken": (refuse("UNAVAILABLE", "WORKER_DIED"), "blamed"),
    "cancelled by nobody": (refuse("CANCELLED", ""), "blamed"),
    "a deadline that has not passed": (refuse("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"), "blamed"),
    "a deadline that Envoy says has passed": (refuse("DEADLINE_EXCEEDED", ""), "blamed"),
    "a stream that is reset before its time": (refuse("RESET 2 200", ""), "blamed"),
}


def test_a_good_history_passes() -> None:
    verdict = judge(good_history())
    assert not verdict.violations, verdict.story()
    assert verdict.ok_count == COUNT


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_found_by_its_name(name: str) -> None:
    bug, kind = BUGS[name]
    history = good_history()
    bug(history)
    found = judge(history).found
    assert found[kind] >= 1
    assert set(found) == {kind}


def test_what_may_happen_is_no_violation() -> None:
    """Cancelled, withdrawn by the server, too late, refused in a fault, and a poisoned row that fails alone."""
    rows = (Row(0, 5),)
    poisoned = (Row(1, 5), Row(2, 5, poison=1))
    history: History = [
        Asked(0, 0.0, "oip", rows),
        Cancelled(0, 0.001),
        Answered(0, 0.002, OK, results=(Result(oracle.answer(1, rows[0]), "1"),)),
        Asked(1, 0.0, "oip", rows),
        Unprocessed(1, 0.1),
        Asked(2, 0.0, "oip", rows, deadline_s=0.05),
        Answered(2, 0.06, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
        Asked(3, 0.0, "oip", rows),
        Answered(3, 0.1, "RESOURCE_EXHAUSTED", "QUEUE_FULL"),
        Asked(4, 0.5, "oip", rows),
        FaultBegan(1.0, "worker killed"),
        Answered(4, 1.1, "UNAVAILABLE", "WORKER_DIED"),
        Asked(5, 1.2, "oip", rows),
        FaultEnded(1.5, "worker killed"),
        Answered(5, 1.6, "UNAVAILABLE", "VERSION_NOT_READY"),
        Asked(6, 2.0, "oip", poisoned),
        Answered(6, 2.1, "INVALID_ARGUMENT", "MODEL_REFUSED"),
        Asked(7, 2.0, "rows", poisoned),
        Answered(
            7,
            2.1,
            OK,
            results=(
                Result(oracle.answer(2, poisoned[0]), "2"),
                Result(None, "", "INVALID_ARGUMENT", "MODEL_REFUSED"),
            ),
        ),
        Asked(8, 2.0, "oip", rows, deadline_s=0.5),
        Answered(8, 2.4, "DEADLINE_EXCEEDED", ""),
    ]
    verdict = judge(history)
    assert not verdict.violations, verdict.story()


def test_unavailable_after_a_fault_is_a_violation() -> None:
    asked = Asked(0, 2.0, "oip", (Row(0, 5),))
    answered = Answered(0, 2.1, "UNAVAILABLE", "WORKER_DIED")
    assert judge([FaultBegan(1.0, "a"), FaultEnded(1.5, "a"), asked, answered]).found == {"blamed": 1}


@pytest.mark.parametrize("version", [1, 2])
def test_the_oracle_in_onnx_says_what_the_oracle_in_python_says(version: int) -> None:
    session = onnxruntime.InferenceSession(oracle.model(version), providers=["CPUExecutionProvider"])
    rows = [Row(0, 0), Row(1, oracle.PAYLOADS - 1), Row(2**32, 12_345), Row(7, 3, turns=50)]
    (values,) = session.run(None, {"x": np.array(rows, np.int64)})
    assert values.tolist() == [[oracle.answer(version, row)] for row in rows]
    with pytest.raises(Exception, match=r"out of (data )?bounds"):
        session.run(None, {"x": np.array([Row(1, 1), Row(2, 2, poison=1)], np.int64)})
