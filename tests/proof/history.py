"""What happened in a run, event by event, and the judge who says whether it may have happened.

A history is every request, every answer, every withdrawal and every fault, in the order in which the client saw them.
The judge keeps open requests only, so a run may be as long as one likes. What it calls a violation:

    wrong      a value that is no version's answer to that row, or an answer to a row that the model cannot answer
    swapped    the answer to another row
    version    the answer of another version than the one that is named, or asked for
    doubled    a second answer to one request, or more results than rows
    lost       no answer, or fewer results than rows
    blamed     a refusal that does not fit: of a good request, too early for a deadline, without a reason, or with nothing broken
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.proof.oracle import Row, answer, owner

VERSIONS: Final = (1, 2)
OK: Final = "OK"
# Clocks of two processes, and the rounding of a header in milliseconds.
_DEADLINE_SLACK_S: Final = 0.01
# Envoy takes the time once for all that it then reads, and counts a call's time from there: with large bodies at hand on a busy
# core that is as much before the call was sent (seen: 0.07 s).
_ENVOY_SLACK_S: Final = 0.25
# How long the frames of a request that was withdrawn may still come.
_CANCELLED_KEPT: Final = 5_000
_KEPT_VIOLATIONS: Final = 50


@dataclass(frozen=True, slots=True)
class Asked:
    """A request was sent. `version` is empty where the route chooses; times in seconds of one clock."""

    id: int
    at: float
    surface: str
    rows: tuple[Row, ...]
    version: str = ""
    deadline_s: float = 5.0

    @property
    def poisoned(self) -> bool:
        return any(row.poison for row in self.rows)


@dataclass(frozen=True, slots=True)
class Result:
    """What one row was answered: a value and the version that is said to have given it, or a failure of its own."""

    value: int | None
    version: str = ""
    status: str = OK
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer came, or a refusal of the whole request. `echoed` is the request id that the answer carries, if any."""

    id: int
    at: float
    status: str
    reason: str = ""
    results: tuple[Result, ...] = ()
    echoed: str | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The caller withdrew the request; it may have been answered by then."""

    id: int
    at: float


@dataclass(frozen=True, slots=True)
class Unprocessed:
    """The server said, in HTTP/2's words, that it never began with the request."""

    id: int
    at: float


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection ended, and the request had no answer."""

    id: int
    at: float


@dataclass(frozen=True, slots=True)
class FaultBegan:
    """Something is about to be broken, so requests may be refused with this status from here on."""

    at: float
    name: str
    allows: str = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class FaultEnded:
    """All is whole again: nothing that is asked from here on may be refused in that way."""

    at: float
    name: str


Event = Asked | Answered | Cancelled | Unprocessed | Cut | FaultBegan | FaultEnded


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must never happen."""

    kind: str
    request: int
    text: str


@dataclass(slots=True)
class Verdict:
    """How the requests of a run ended, and everything that must not have been."""

    outcomes: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    by_surface: Counter[str] = field(default_factory=Counter)
    """Requests answered OK, by surface."""

    @property
    def ok_count(self) -> int:
        return self.outcomes[OK]

    def story(self) -> str:
        """Return the verdict in a few lines."""
        lines = [f"{name}: {count:,}" for name, count in self.outcomes.most_common()]
        lines += [f"{one.kind}: request {one.request}: {one.text}" for one in self.violations]
        return "\n".join(lines)


@dataclass(slots=True)
class _Window:
    name: str
    allows: str
    began: float
    ended: float = float("inf")


class Judge:
    """Takes the events of a run one by one; `verdict` says the rest."""

    def __init__(self) -> None:
        self.verdict = Verdict()
        self._open: dict[int, Asked] = {}
        self._cancelled: dict[int, Asked] = {}
        self._cancelled_order: deque[int] = deque()
        self._rows_seen = 0
        self._requests_seen = 0
        self._windows: list[_Window] = []
        self._handlers: dict[type, Callable[..., None]] = {
            Asked: self._asked,
            Answered: self._answered,
            Cancelled: self._withdrawn,
            Unprocessed: lambda event: self._closed_unanswered(event, "never begun"),
            Cut: self._cut,
            FaultBegan: lambda event: self._windows.append(_Window(event.name, event.allows, event.at)),
            FaultEnded: self._fault_ended,
        }

    @property
    def open_count(self) -> int:
        """Requests without an end so far."""
        return len(self._open)

    def oldest_open_at(self) -> float:
        """Return when the oldest open request was asked; infinity when none is open."""
        return min((asked.at for asked in self._open.values()), default=float("inf"))

    def take(self, event: Event) -> None:
        """Judge the next event."""
        self._handlers[type(event)](event)

    def finish(self) -> Verdict:
        """Say what never got an answer; the run is over."""
        for asked in self._open.values():
            self._violate("lost", asked.id, f"{asked.surface}: no answer")
        self._open.clear()
        return self.verdict

    def _asked(self, event: Asked) -> None:
        assert event.id == self._requests_seen, "requests are numbered in order"
        self._requests_seen += 1
        self._rows_seen = max(self._rows_seen, *(row.id + 1 for row in event.rows))
        self._open[event.id] = event

    def _withdrawn(self, event: Cancelled) -> None:
        asked = self._open.pop(event.id, None)
        if asked is None:
            return
        self.verdict.outcomes["cancelled"] += 1
        self._cancelled[event.id] = asked
        self._cancelled_order.append(event.id)
        if len(self._cancelled_order) > _CANCELLED_KEPT:
            self._cancelled.pop(self._cancelled_order.popleft(), None)

    def _closed_unanswered(self, event: Unprocessed, outcome: str) -> None:
        if self._open.pop(event.id, None) is not None:
            self.verdict.outcomes[outcome] += 1

    def _cut(self, event: Cut) -> None:
        asked = self._open.pop(event.id, None)
        if asked is not None:
            self._violate("lost", event.id, f"{asked.surface}: the connection was cut, no answer")

    def _fault_ended(self, event: FaultEnded) -> None:
        for window in self._windows:
            if window.name == event.name:
                window.ended = min(window.ended, event.at)

    def _answered(self, event: Answered) -> None:
        asked = self._open.pop(event.id, None)
        if asked is None:
            asked = self._cancelled.pop(event.id, None)
            if asked is None:
                self._violate("doubled", event.id, f"another answer, {event.status}, to a request that was over")
            elif event.status == OK:
                self._check_results(asked, event)
            return
        if event.status == OK:
            self._check_results(asked, event)
            self.verdict.outcomes[OK] += 1
            self.verdict.by_surface[asked.surface] += 1
        else:
            self.verdict.outcomes[f"{event.status} {event.reason}"] += 1
            self._check_refusal(asked, event.at, event.status, event.reason, poisoned=asked.poisoned, text=event.text)

    def _check_results(self, asked: Asked, event: Answered) -> None:
        if event.echoed is not None and event.echoed != str(asked.id):
            self._violate("swapped", asked.id, f"{asked.surface}: the answer is to request {event.echoed}")
        more = len(event.results) - len(asked.rows)
        if more:
            kind = "doubled" if more > 0 else "lost"
            self._violate(kind, asked.id, f"{asked.surface}: {len(event.results)} results to {len(asked.rows)} rows")
        for row, result in zip(asked.rows, event.results, strict=False):
            if result.value is None:
                poisoned = bool(row.poison)
                self._check_refusal(asked, event.at, result.status, result.reason, poisoned=poisoned, text="one row")
            else:
                self._check_value(asked, row, result.value, result.version)

    def _check_value(self, asked: Asked, row: Row, value: int, version: str) -> None:
        where = f"{asked.surface}: row {row.id}, version {version!r}: {value}"
        if asked.version and version != asked.version:
            self._violate("version", asked.id, f"{where}; version {asked.version} was asked for")
        if row.poison:
            self._violate("wrong", asked.id, f"{where} is an answer to a row that has none")
        elif version in map(str, VERSIONS) and value == answer(int(version), row):
            return
        elif value in (answer(number, row) for number in VERSIONS):
            self._violate("version", asked.id, f"{where} is what another version says")
        elif owner(value) != row.id and 0 <= owner(value) < self._rows_seen:
            self._violate("swapped", asked.id, f"{where} belongs to row {owner(value)}")
        else:
            self._violate("wrong", asked.id, where)

    def _check_refusal(self, asked: Asked, at: float, status: str, reason: str, *, poisoned: bool, text: str) -> None:
        said = f"{asked.surface}: {status} {reason or '(no reason)'} {text}"
        if status == "DEADLINE_EXCEEDED" or status.startswith("RESET"):
            # Envoy and grpcio keep the time too, and give no reason. Where an answer has begun when its time is up, Envoy
            # can only reset the stream; a client that keeps its own time has gone by then.
            passed = at - asked.at
            if passed < asked.deadline_s - (_DEADLINE_SLACK_S if reason else _ENVOY_SLACK_S):
                self._violate("blamed", asked.id, f"{said} after {passed:.4f} s of {asked.deadline_s} s")
        elif not reason and status != "CANCELLED":
            self._violate("blamed", asked.id, said)
        elif status in {"UNAVAILABLE", "CANCELLED"}:
            if not self._was_broken(asked.at, at, status):
                self._violate("blamed", asked.id, f"{said}, with nothing broken")
        elif status != "RESOURCE_EXHAUSTED" and not (poisoned and status == "INVALID_ARGUMENT"):
            self._violate("blamed", asked.id, said)

    def _was_broken(self, since: float, until: float, status: str) -> bool:
        return any(one.allows == status and one.began <= until and one.ended >= since for one in self._windows)

    def _violate(self, kind: str, request: int, text: str) -> None:
        self.verdict.found[kind] += 1
        if len(self.verdict.violations) < _KEPT_VIOLATIONS:
            self.verdict.violations.append(Violation(kind, request, text))


def judge(events: Sequence[Event]) -> Verdict:
    """Judge a whole history."""
    found = Judge()
    for event in events:
        found.take(event)
    return found.finish()
