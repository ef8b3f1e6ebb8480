"""What sinks are to be told, in the database: a restart loses nothing, and several monitors send each thing once."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import and_, select, update

from services.common.database import Database
from services.monitor.adapters.alert_store import alert_from_row
from services.monitor.adapters.table import ALERT, ALERT_DELIVERY
from services.monitor.domain.alert import Alert
from services.monitor.domain.alert_delivery import Delivery, Event
from services.monitor.domain.policy import MINUTE_US

_D: Final = ALERT_DELIVERY.c


class SqlDeliveries:
    """See `alert_ports.Deliveries`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due(self, sink: str, limit: int) -> list[tuple[Delivery, Delivery]]:
        """Return what is due, the oldest first, each with the firing notification of the same alert and sink."""
        async with self._database.read() as connection:
            now_us = await self._database.now_us(connection)
            query = select(_D.alert).where(_D.sink == sink, _D.due_us <= now_us).order_by(_D.due_us).limit(limit)
            names = list(dict.fromkeys(await connection.scalars(query)))
            if not names:
                return []
            rows = await connection.execute(select(ALERT).where(ALERT.c.name.in_(names)))
            alerts = {row["name"]: alert_from_row(row) for row in rows.mappings()}
            found = await connection.execute(
                select(ALERT_DELIVERY).where(_D.sink == sink, _D.alert.in_(names)).order_by(_D.due_us)
            )
            deliveries = [_delivery(row, alerts[row["alert"]]) for row in found.mappings() if row["alert"] in alerts]
        firing = {one.alert.name: one for one in deliveries if one.event is Event.FIRING}
        return [
            (one, firing[one.alert.name])
            for one in deliveries
            if one.due_us is not None and one.due_us <= now_us and one.alert.name in firing
        ]

    async def claim(self, deliveries: Sequence[Delivery], until_us: int) -> list[Delivery]:
        """Take notifications until a time; those that somebody else has taken meanwhile are left out."""
        taken = []
        async with self._database.write() as connection:
            for one in deliveries:
                mine = and_(_is(one), _D.due_us == one.due_us)
                changed = await connection.execute(update(ALERT_DELIVERY).where(mine).values(due_us=until_us))
                if changed.rowcount:
                    taken.append(one)
        return taken

    async def finish(self, deliveries: Sequence[Delivery]) -> None:
        """Write down what became of notifications."""
        async with self._database.write() as connection:
            for one in deliveries:
                change = update(ALERT_DELIVERY).where(_is(one))
                await connection.execute(
                    change.values(
                        due_us=one.due_us,
                        attempts=one.attempts,
                        held=int(one.is_held),
                        delivered_us=one.delivered_us,
                        error=one.error,
                    )
                )

    async def now_us(self) -> int:
        """Return the database's time, microseconds."""
        async with self._database.read() as connection:
            return await self._database.now_us(connection)

    async def orphan(self, sinks: Collection[str]) -> None:
        """Note on notifications for sinks that are no longer in the settings that nobody will send them."""
        text = "no sink of that name in the monitor's settings"
        lost = and_(_D.sink.not_in(list(sinks)), _D.due_us.is_not(None), _D.error != text)
        async with self._database.read() as connection:
            now_us = await self._database.now_us(connection)
            # A monitor of newer settings on the same database sends it at once.
            lost = and_(lost, _D.due_us < now_us - MINUTE_US)
            if await connection.scalar(select(_D.alert).where(lost).limit(1)) is None:
                return
        async with self._database.write() as connection:
            await connection.execute(update(ALERT_DELIVERY).where(lost).values(error=text))


def _is(delivery: Delivery) -> Any:
    return and_(_D.alert == delivery.alert.name, _D.sink == delivery.sink, _D.event == delivery.event.value)


def _delivery(row: Mapping[Any, Any], alert: Alert) -> Delivery:
    return Delivery(
        alert=alert,
        sink=row["sink"],
        event=Event(row["event"]),
        due_us=row["due_us"],
        create_us=row["create_us"],
        attempts=row["attempts"],
        is_held=bool(row["held"]),
        delivered_us=row["delivered_us"],
        error=row["error"],
    )
