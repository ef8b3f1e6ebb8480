"""Takes labels and rewards: says what is wrong at once, keeps the others, and says what became of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from services.common.errors import InvalidArgument, ServiceError, Violation
from services.common.refusals import InvalidRequest
from services.monitor.domain.feedback import LABEL, Feedback, Outcome, meaning
from services.monitor.domain.ports import LogPolicies, Versions

_LOG: Final = structlog.get_logger(part="feedback")
INVALID_LABEL: Final = "INVALID_LABEL"
Known = tuple[str, str] | bool
"""Model and version of a prediction; False = it is not in the log, True = it was not looked for."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one feedback."""

    outcome: Outcome
    error: ServiceError | None = None
    """Why it was refused."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer that is kept with a request id, so that the same request gets the same one."""

    request_id: str
    digest: bytes
    """Of the request's content."""
    encode: Callable[[Sequence[Outcome]], bytes]
    """Makes the answer."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a request; with `answer` it had been answered before."""

    outcomes: tuple[Outcome, ...] = ()
    answer: bytes | None = None


class Keeper(Protocol):
    """Keeps feedback."""

    async def take(self, feedback: Sequence[Feedback], answered: Answered | None = None) -> Taken:
        """Keep it durably; raises FeedbackQueueFull, RequestIdReused, and what the database cannot do."""


class Log(Protocol):
    """Knows predictions."""

    async def known(self, ids: Sequence[bytes]) -> list[Known]:
        """Tell of each id which prediction it is; raises LogUnavailable."""


class FeedbackDesk:
    """Where feedback comes in."""

    def __init__(self, keeper: Keeper, log: Log, versions: Versions, policies: LogPolicies) -> None:
        self._keeper = keeper
        self._log = log
        self._versions = versions
        self._policies = policies

    async def take(
        self,
        items: Sequence[Feedback | InvalidArgument],
        encode: Callable[[Sequence[Result]], bytes],
        *,
        request_id: str = "",
        digest: bytes = b"",
    ) -> bytes:
        """Return the answer that `encode` makes of what became of each item, or the one that the request had before.

        An item that is wrong already comes as its error. Raises what `Keeper.take` raises.
        """
        asked = [item.prediction_id for item in items if isinstance(item, Feedback)]
        places = iter(await self._known(asked))
        good: list[tuple[Feedback, Known]] = []
        checked: list[Feedback | InvalidArgument] = []
        for item in items:
            known = next(places) if isinstance(item, Feedback) else True
            checked.append(await self._checked(item, known) if isinstance(item, Feedback) else item)
            if isinstance(checked[-1], Feedback):
                good.append((checked[-1], known))

        def answer(outcomes: Sequence[Outcome]) -> bytes:
            seen = (_seen(outcome, known) for outcome, (_, known) in zip(outcomes, good, strict=True))
            return encode([
                Result(next(seen)) if isinstance(item, Feedback) else Result(Outcome.REFUSED, item) for item in checked
            ])  # fmt: skip

        answered = Answered(request_id, digest, answer) if request_id else None
        taken = await self._keeper.take([item for item, _ in good], answered)
        return taken.answer if taken.answer is not None else answer(taken.outcomes)

    async def _known(self, ids: Sequence[bytes]) -> list[Known]:
        try:
            return await self._log.known(ids) if ids else []
        except ServiceError as error:
            # Labels are kept whether the log can be read or not.
            _LOG.warning("predictions_not_looked_for", reason=error.reason)
            return [True] * len(ids)

    async def _checked(self, item: Feedback, known: Known) -> Feedback | InvalidArgument:
        """Return the item, or what is wrong with it, as far as its prediction is known."""
        if isinstance(known, bool) or item.metric != LABEL:
            return item
        model, version = known
        longest_us = int(self._policies.of_model(model).label_retention_s * 1e6)
        if item.event_us - item.prediction_us > longest_us:
            late = f"want at most {longest_us // 1_000_000} s after the prediction, got more"
            return InvalidRequest([Violation("event_time", late)], INVALID_LABEL)
        info = await self._versions.get(model, version)
        if info is None or info.task is None:
            return item
        found = meaning(item.number, item.text, info)
        return InvalidRequest([Violation("label", found)], INVALID_LABEL) if isinstance(found, str) else item


def _seen(outcome: Outcome, known: Known) -> Outcome:
    return Outcome.WAITING if outcome is Outcome.TAKEN and known is False else outcome
