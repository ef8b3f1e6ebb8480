"""Alerts and their rules in the database. What sinks are told is queued in the transaction that gives them a reason."""

import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from sqlalchemy import Select, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.database import Database
from services.common.refusals import EtagMismatch, ResourceNotFound
from services.monitor.adapters.change_answer import recall, remember
from services.monitor.adapters.table import ALERT, ALERT_DELIVERY, ALERT_RULE, SILENCE
from services.monitor.domain.alert import Alert, AlertRule, AlertState, Changes, Condition, Severity, Subject, judge
from services.monitor.domain.alert_delivery import Event
from services.monitor.domain.alert_ports import AlertQuery, RequestKey
from services.monitor.domain.failure import ResourceExists

_R: Final = ALERT_RULE.c
_A: Final = ALERT.c
_D: Final = ALERT_DELIVERY.c
_OPEN: Final = (AlertState.PENDING, AlertState.FIRING)


class SqlAlertRules:
    """See `alert_ports.AlertRules`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, rule: AlertRule, key: RequestKey) -> AlertRule:
        """Keep a new rule; raises ResourceExists."""
        async with self._database.write() as connection:
            now_us = await self._database.now_us(connection)
            known = await recall(connection, key, now_us)
            if known is not None:
                return rule_from_text(known)
            taken = select(_R.name).where(_R.folded_name == rule.name.lower())
            if await connection.scalar(taken) is not None:
                raise ResourceExists(_name(rule.name))
            made = replace(rule, create_us=now_us, update_us=now_us, etag=str(now_us))
            await connection.execute(insert(ALERT_RULE).values(_rule_row(made)))
            await remember(connection, key, rule_to_text(made), now_us)
        return made

    async def change(self, name: str, etag: str, key: RequestKey, apply: Callable[[AlertRule], AlertRule]) -> AlertRule:
        """Change a rule; raises ResourceNotFound, EtagMismatch and whatever `apply` raises."""
        async with self._database.write() as connection:
            now_us = await self._database.now_us(connection)
            known = await recall(connection, key, now_us)
            if known is not None:
                return rule_from_text(known)
            current = await self._held(connection, name, etag)
            wanted = apply(current)
            if wanted != current:
                stamp_us = max(now_us, current.update_us + 1)
                wanted = replace(wanted, update_us=stamp_us, etag=str(stamp_us))
                await connection.execute(update(ALERT_RULE).where(_R.name == name).values(_rule_row(wanted)))
            await remember(connection, key, rule_to_text(wanted), now_us)
        return wanted

    async def delete(self, name: str, etag: str, key: RequestKey) -> None:
        """Delete a rule and resolve its alerts; raises ResourceNotFound, EtagMismatch."""
        async with self._database.write() as connection:
            now_us = await self._database.now_us(connection)
            if await recall(connection, key, now_us) is not None:
                return
            rule = await self._held(connection, name, etag)
            changes = judge(rule, await open_alerts(connection, name), {}, now_us)
            await apply_changes(connection, changes, now_us)
            await connection.execute(delete(ALERT_RULE).where(_R.name == name))
            await remember(connection, key, "", now_us)

    async def get(self, name: str) -> AlertRule:
        """Return a rule; raises ResourceNotFound."""
        async with self._database.read() as connection:
            return await _rule(connection, name)

    async def page(self, model: str, after: str, size: int) -> list[AlertRule]:
        """Return rules by name, after a name; of one model, or of all."""
        query = select(_R.body).where(_R.name > after).order_by(_R.name).limit(size)
        if model:
            query = query.where(_R.model == model)
        async with self._database.read() as connection:
            return [rule_from_text(body) for body in await connection.scalars(query)]

    async def all(self) -> list[AlertRule]:
        """Return every rule."""
        async with self._database.read() as connection:
            return [rule_from_text(body) for body in await connection.scalars(select(_R.body).order_by(_R.name))]

    async def _held(self, connection: AsyncConnection, name: str, etag: str) -> AlertRule:
        rule = await _rule(connection, name, for_update=not self._database.is_sqlite)
        if etag not in ("", rule.etag):
            raise EtagMismatch(_name(name), rule.etag, etag)
        return rule


class SqlAlerts:
    """See `alert_ports.Alerts`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, name: str) -> Alert:
        """Return an alert; raises ResourceNotFound."""
        async with self._database.read() as connection:
            found = await _alerts(connection, select(ALERT).where(_A.name == name))
            if not found:
                raise ResourceNotFound(f"alerts/{name}")
            return (await _with_deliveries(connection, found))[0]

    async def page(self, query: AlertQuery, after: str, size: int) -> list[Alert]:
        """Return alerts, the newest first, after one."""
        wanted = select(ALERT).where(_A.state.in_(list(query.states))).order_by(_A.name.desc()).limit(size)
        for column, value in ((_A.model, query.model), (_A.rule, query.rule)):
            wanted = wanted.where(column == value) if value else wanted
        wanted = wanted.where(_A.name < after) if after else wanted
        async with self._database.read() as connection:
            return await _with_deliveries(connection, await _alerts(connection, wanted))

    async def open_of(self, rule: str) -> list[Alert]:
        """Return the pending and firing alerts of a rule."""
        async with self._database.read() as connection:
            return await open_alerts(connection, rule)

    async def settle(self, rule: AlertRule, decide: Callable[[Sequence[Alert]], Changes]) -> bool:
        """Change the alerts of a rule as `decide` says of its open ones, and queue what sinks are to be told.

        One transaction; nothing happens when the rule has changed since it was read. Returns whether anything changed.
        """
        # Most of the time nothing changes, and nobody needs to wait for a lock to learn that.
        if decide(await self.open_of(rule.name)) == Changes():
            return False
        async with self._database.write() as connection:
            query = select(_R.etag).where(_R.name == rule.name)
            # On Postgres the rule's row is what two monitors queue for.
            query = query if self._database.is_sqlite else query.with_for_update()
            if await connection.scalar(query) != rule.etag:
                return False
            changes = decide(await open_alerts(connection, rule.name))
            await apply_changes(connection, changes, await self._database.now_us(connection))
        return changes != Changes()

    async def clean(self, before_us: int) -> None:
        """Drop alerts that were resolved before a time, and silences that ended."""
        async with self._database.write() as connection:
            old = select(_A.name).where(_A.resolve_us < before_us)
            await connection.execute(delete(ALERT_DELIVERY).where(_D.alert.in_(old)))
            await connection.execute(delete(ALERT).where(_A.resolve_us < before_us))
            await connection.execute(delete(SILENCE).where(SILENCE.c.end_us < before_us))


async def open_alerts(connection: AsyncConnection, rule: str) -> list[Alert]:
    """Return the pending and firing alerts of a rule, without what sinks were told."""
    return await _alerts(connection, select(ALERT).where(_A.rule == rule, _A.state.in_(_OPEN)))


async def apply_changes(connection: AsyncConnection, changes: Changes, now_us: int) -> None:
    """Write changes of alerts and queue what sinks are to be told about them."""
    if changes.forget:
        await connection.execute(delete(ALERT).where(_A.name.in_([alert.name for alert in changes.forget])))
    for alert in changes.put:
        name = alert.name or new_id(now_us)
        row = _alert_row(replace(alert, name=name))
        if alert.name:
            await connection.execute(update(ALERT).where(_A.name == name).values(row))
        else:
            await connection.execute(insert(ALERT).values(row))
        if alert.fire_us is not None:
            await _queue(connection, replace(alert, name=name), now_us)


def new_id(now_us: int) -> str:
    """Return an id that rises with time."""
    return f"{now_us:014x}{secrets.token_hex(5)}"


async def _queue(connection: AsyncConnection, alert: Alert, now_us: int) -> None:
    """Queue what sinks do not know yet: that it fires, or, to those that were to know, that it is resolved."""
    query = select(_D.sink, _D.event).where(_D.alert == alert.name)
    queued = {(row.sink, row.event) for row in await connection.execute(query)}
    known = {sink for sink, event in queued if event == Event.FIRING}
    # One that fired and is over by now, seen for the first time, is told as a whole.
    firing = set(alert.rule.sinks) if alert.is_open or not queued else known
    wanted = {(sink, Event.FIRING) for sink in firing}
    if not alert.is_open:
        wanted |= {(sink, Event.RESOLVED) for sink in firing}
    rows = [
        {
            "alert": alert.name,
            "sink": sink,
            "event": event.value,
            "due_us": now_us,
            "create_us": now_us,
            "attempts": 0,
            "held": 0,
            "error": "",
        }
        for sink, event in sorted(wanted)
        if (sink, event) not in queued
    ]
    if rows:
        await connection.execute(insert(ALERT_DELIVERY), rows)


async def _rule(connection: AsyncConnection, name: str, *, for_update: bool = False) -> AlertRule:
    query = select(_R.body).where(_R.name == name)
    body = await connection.scalar(query.with_for_update() if for_update else query)
    if body is None:
        raise ResourceNotFound(_name(name))
    return rule_from_text(body)


async def _alerts(connection: AsyncConnection, query: Select[Any]) -> list[Alert]:
    return [alert_from_row(row) for row in (await connection.execute(query)).mappings()]


async def _with_deliveries(connection: AsyncConnection, alerts: Sequence[Alert]) -> list[Alert]:
    names = [alert.name for alert in alerts]
    rows = (await connection.execute(select(ALERT_DELIVERY).where(_D.alert.in_(names)))).mappings().all()
    return [_told(alert, [row for row in rows if row["alert"] == alert.name]) for alert in alerts]


def _told(alert: Alert, rows: Iterable[Mapping[Any, Any]]) -> Alert:
    times: dict[str, int] = {}
    errors: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: str(row["event"])):
        if row["delivered_us"] is not None:
            times[row["sink"]] = max(times.get(row["sink"], 0), row["delivered_us"])
        if row["error"]:
            errors[row["sink"]] = row["error"]
    return replace(alert, deliveries=times, delivery_errors=errors)


def alert_from_row(row: Mapping[Any, Any]) -> Alert:
    """Return an alert as the database has it."""
    return Alert(
        name=row["name"],
        rule=rule_from_text(row["rule_body"]),
        subject=Subject(row["model"], row["version"], row["environment"], row["slice"], row["feature"]),
        state=AlertState(row["state"]),
        value=row["value"],
        start_us=row["start_us"],
        end_us=row["end_us"],
        fire_us=row["fire_us"],
        resolve_us=row["resolve_us"],
    )


def _alert_row(alert: Alert) -> dict[str, Any]:
    subject = alert.subject
    parts = (subject.model, subject.version, subject.environment, subject.slice_name, subject.feature)
    return {
        "name": alert.name,
        "open_key": json.dumps([alert.rule.name, *parts]) if alert.is_open else None,
        "rule": alert.rule.name,
        **dict(zip(("model", "version", "environment", "slice", "feature"), parts, strict=True)),
        "state": int(alert.state),
        "value": alert.value,
        "start_us": alert.start_us,
        "end_us": alert.end_us,
        "fire_us": alert.fire_us,
        "resolve_us": alert.resolve_us,
        "rule_body": rule_to_text(alert.rule),
    }


def _rule_row(rule: AlertRule) -> dict[str, Any]:
    return {
        "name": rule.name,
        "folded_name": rule.name.lower(),
        "model": rule.model,
        "etag": rule.etag,
        "body": rule_to_text(rule),
    }


def rule_to_text(rule: AlertRule) -> str:
    """Return a rule as JSON."""
    return json.dumps(asdict(rule))


def rule_from_text(text: str) -> AlertRule:
    """Return a rule from JSON; what a newer release has added is left out."""
    values = {name: value for name, value in json.loads(text).items() if name in AlertRule.__slots__}
    return AlertRule(
        **{
            **values,
            "condition": Condition(values["condition"]),
            "severity": Severity(values["severity"]),
            "features": tuple(values["features"]),
            "sinks": tuple(values["sinks"]),
        }
    )


def _name(rule: str) -> str:
    return f"alertRules/{rule}"
