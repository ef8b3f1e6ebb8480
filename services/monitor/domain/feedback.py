"""Labels and rewards: which of several holds, and whether one fits the prediction."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from services.monitor.domain.version_info import Task, VersionInfo

LABEL: Final = ""
"""The metric of a label."""


class Outcome(IntEnum):
    """What becomes of feedback; the numbers are those of the contract's FeedbackOutcome."""

    TAKEN = 1
    WAITING = 2
    DUPLICATE = 3
    REPLACED = 4
    OLDER = 5
    REFUSED = 6


class LabelState(IntEnum):
    """How far a label has come."""

    OPEN = 0
    """It is not joined with its prediction yet."""
    JOINED = 1
    UNUSABLE = 2
    """It does not fit its prediction, or came too late."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """A label or a reward: a number, or a text."""

    prediction_id: bytes
    metric: str
    number: float | None
    text: str | None
    event_us: int
    """When it became true, microseconds since 1970."""
    event_given: bool
    """Whether the sender said when; else it is the time of arrival."""
    source: str = ""

    @property
    def key(self) -> tuple[bytes, str]:
        """What one value is held for."""
        return self.prediction_id, self.metric

    @property
    def prediction_us(self) -> int:
        """Time of the prediction, microseconds since 1970."""
        return int.from_bytes(self.prediction_id[:6], "big") * 1000


@dataclass(frozen=True, slots=True)
class Held:
    """What is held for a prediction and metric."""

    number: float | None
    text: str | None
    event_us: int
    revision: int = 1


@dataclass(frozen=True, slots=True)
class Change:
    """What a batch of feedback changes: the last state of one key."""

    feedback: Feedback
    revision: int


def judge(held: Held | None, new: Feedback) -> Outcome:
    """Return what becomes of feedback, given what is held. TAKEN also stands for one whose prediction is not known.

    The newest event time holds; of two with the same one the one that came last. The same value again, at the same
    time or at no given one, is a duplicate: a sender that does not know whether it got through sends it again.
    """
    if held is None:
        return Outcome.TAKEN
    if (held.number, held.text) == (new.number, new.text) and (new.event_us == held.event_us or not new.event_given):
        return Outcome.DUPLICATE
    return Outcome.REPLACED if new.event_us >= held.event_us else Outcome.OLDER


def judge_all(
    held: dict[tuple[bytes, str], Held], feedback: Sequence[Feedback]
) -> tuple[list[Outcome], dict[tuple[bytes, str], Change]]:
    """Return the outcome of each, one after the other, and the changes that come of all; `held` is what is held before."""
    state = dict(held)
    outcomes: list[Outcome] = []
    changes: dict[tuple[bytes, str], Change] = {}
    for new in feedback:
        before = state.get(new.key)
        outcome = judge(before, new)
        outcomes.append(outcome)
        if outcome in (Outcome.TAKEN, Outcome.REPLACED):
            revision = before.revision + 1 if before else 1
            state[new.key] = Held(new.number, new.text, new.event_us, revision)
            changes[new.key] = Change(new, revision)
    return outcomes, changes


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a label says in the terms of its version."""

    value: float
    """Class index, or number."""
    name: str | None = None
    """Name of the class."""


def meaning(number: float | None, text: str | None, info: VersionInfo) -> Meaning | str:
    """Return what a label means, or what is wrong with it as "want ..., got ..."."""
    if info.task is not Task.CLASSIFICATION:
        return Meaning(number) if number is not None else f"want a number, got the text {text!r}"
    names = info.labels
    if text is not None:
        if text in names:
            return Meaning(float(names.index(text)), text)
        return f"want one of {', '.join(names[:20])}, got {text[:64]!r}"
    if number is not None and number.is_integer() and 0 <= number < len(names):
        return Meaning(number, names[int(number)])
    return f"want a class index from 0 to {len(names) - 1} or the name of a class, got {number}"
