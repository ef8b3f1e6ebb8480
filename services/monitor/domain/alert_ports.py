"""Where alerts are kept, and who is told, as the rules need it. Every method raises ServiceError when it cannot."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.monitor.domain.alert import Alert, AlertRule, AlertState, Changes, Silence
from services.monitor.domain.alert_delivery import Delivery


@dataclass(frozen=True, slots=True)
class RequestKey:
    """An idempotency key with what it came with. The same id and digest within a day give the same answer."""

    request_id: str
    """Empty: none."""
    digest: bytes = b""


class AlertRules(Protocol):
    """Keeps rules. Changes raise RequestIdReused for a key that came with another request."""

    async def create(self, rule: AlertRule, key: RequestKey) -> AlertRule:
        """Keep a new rule; raises ResourceExists."""

    async def change(self, name: str, etag: str, key: RequestKey, apply: Callable[[AlertRule], AlertRule]) -> AlertRule:
        """Change a rule; raises ResourceNotFound, EtagMismatch and whatever `apply` raises."""

    async def delete(self, name: str, etag: str, key: RequestKey) -> None:
        """Delete a rule and resolve its alerts; raises ResourceNotFound, EtagMismatch."""

    async def get(self, name: str) -> AlertRule:
        """Return a rule; raises ResourceNotFound."""

    async def page(self, model: str, after: str, size: int) -> list[AlertRule]:
        """Return rules by name, after a name; of one model, or of all."""

    async def all(self) -> list[AlertRule]:
        """Return every rule."""


@dataclass(frozen=True, slots=True)
class AlertQuery:
    """Which alerts."""

    states: Collection[AlertState]
    model: str = ""
    rule: str = ""


class Alerts(Protocol):
    """Keeps alerts."""

    async def get(self, name: str) -> Alert:
        """Return an alert; raises ResourceNotFound."""

    async def page(self, query: AlertQuery, after: str, size: int) -> list[Alert]:
        """Return alerts, the newest first, after one."""

    async def open_of(self, rule: str) -> list[Alert]:
        """Return the pending and firing alerts of a rule."""

    async def settle(self, rule: AlertRule, decide: Callable[[Sequence[Alert]], Changes]) -> bool:
        """Change the alerts of a rule as `decide` says of its open ones, and queue what sinks are to be told.

        One transaction; nothing happens when the rule has changed since it was read. Returns whether anything changed.
        """

    async def clean(self, before_us: int) -> None:
        """Drop alerts that were resolved before a time, and silences that ended."""


class Silences(Protocol):
    """Keeps silences."""

    async def create(self, silence: Silence, key: RequestKey) -> Silence:
        """Keep a new silence under an id of ours."""

    async def get(self, name: str) -> Silence:
        """Return a silence; raises ResourceNotFound."""

    async def end(self, name: str, key: RequestKey) -> Silence:
        """End a silence now; raises ResourceNotFound."""

    async def page(self, after: str, size: int, active_at_us: int | None) -> list[Silence]:
        """Return silences, the newest first, after one; those only that hold at a time."""

    async def active(self) -> list[Silence]:
        """Return the silences that hold now."""


class Deliveries(Protocol):
    """Keeps what sinks are to be told."""

    async def due(self, sink: str, limit: int) -> list[tuple[Delivery, Delivery]]:
        """Return what is due, the oldest first, each with the firing notification of the same alert and sink."""

    async def claim(self, deliveries: Sequence[Delivery], until_us: int) -> list[Delivery]:
        """Take notifications until a time; those that somebody else has taken meanwhile are left out."""

    async def finish(self, deliveries: Sequence[Delivery]) -> None:
        """Write down what became of notifications."""

    async def now_us(self) -> int:
        """Return the database's time, microseconds."""

    async def orphan(self, sinks: Collection[str]) -> None:
        """Note on notifications for sinks that are no longer in the settings that nobody will send them."""


class AlertSink(Protocol):
    """Tells somebody."""

    resend_us: int
    """How often a firing alert is told again; 0: once."""

    async def send(self, deliveries: Sequence[Delivery], now_us: int) -> Sequence[str]:
        """Tell about alerts; returns for each what went wrong, empty for success."""
