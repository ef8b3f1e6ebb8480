"""Tells sinks about alerts: each sink on its own, so that a slow or dead one delays nobody else."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol

import structlog

from services.common.errors import ServiceError
from services.common.tasks import to_the_end
from services.monitor.domain.alert import silence_of
from services.monitor.domain.alert_delivery import GIVE_UP_US, Delivery, Event, Step, next_step, wait_us
from services.monitor.domain.alert_ports import AlertSink, Deliveries, Silences
from services.monitor.domain.policy import SECOND_US

_LOG: Final = structlog.get_logger(part="alerts")
_BATCH: Final = 50
_HOLD_US: Final = 2 * SECOND_US
"""How soon a notification that a silence keeps back is looked at again: a silence may be ended early."""


class DeliveryMetrics(Protocol):
    """Counts notifications."""

    def delivered(self, sink: str, outcome: str) -> None:
        """Count one attempt: "ok", "failed" or "given_up"."""


class AlertDispatch:
    """Sends what is queued. Several monitors may share a queue: a notification is claimed before it is sent."""

    def __init__(
        self,
        deliveries: Deliveries,
        silences: Silences,
        sinks: Mapping[str, AlertSink],
        metrics: DeliveryMetrics,
        *,
        timeout_s: float,
    ) -> None:
        self._deliveries = deliveries
        self._silences = silences
        self._sinks = sinks
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._changed = {name: asyncio.Event() for name in sinks}

    def wake(self) -> None:
        """Look at the queue at once."""
        for event in self._changed.values():
            event.set()

    async def note_orphans(self) -> None:
        """Say of notifications for sinks that are no longer in the settings that nobody will send them."""
        await self._deliveries.orphan(list(self._sinks))

    async def run(self, interval_s: float) -> None:
        """Send what is queued, for good; when it is cancelled, all sinks end what they are sending at the same time."""
        await asyncio.gather(*(self._run_sink(sink, interval_s) for sink in self._sinks))

    async def _run_sink(self, sink: str, interval_s: float) -> None:
        changed = self._changed[sink]
        while True:
            changed.clear()
            try:
                while await to_the_end(self.send_due(sink)):
                    pass
            except ServiceError as error:
                _LOG.warning("alerts_not_sent", sink=sink, reason=error.reason)
            except Exception as error:  # noqa: BLE001 - a sink goes on whatever is wrong with one notification
                _LOG.error("alerts_not_sent", sink=sink, exc_info=error)
                await asyncio.sleep(interval_s)
            try:
                async with asyncio.timeout(interval_s):
                    await changed.wait()
            except TimeoutError:
                pass

    async def send_due(self, sink: str) -> bool:
        """Send what is due for a sink; returns whether there was anything to do."""
        due = await self._deliveries.due(sink, _BATCH)
        if not due:
            return False
        now_us = await self._deliveries.now_us()
        silences = await self._silences.active()
        chosen: list[Delivery] = []
        settled: list[Delivery] = []
        for delivery, firing in due:
            step = next_step(delivery, firing, is_silenced=bool(silence_of(delivery.alert, silences, now_us)))
            if step is Step.SEND:
                chosen.append(delivery)
            else:
                settled.append(_put_off(delivery, step, now_us))
        if settled:
            await self._deliveries.finish(settled)
        if chosen:
            await self._send(sink, chosen, now_us)
        return bool(chosen) or any(delivery.due_us is None for delivery in settled)

    async def _send(self, name: str, chosen: Sequence[Delivery], now_us: int) -> None:
        sink = self._sinks[name]
        until_us = now_us + int(2 * self._timeout_s * SECOND_US)
        claimed = await self._deliveries.claim(chosen, until_us)
        if not claimed:
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                errors = await sink.send(claimed, now_us)
        except TimeoutError:
            errors = [f"no answer within {self._timeout_s:g} s"] * len(claimed)
        now_us = await self._deliveries.now_us()
        done = [self._after(sink, one, error, now_us) for one, error in zip(claimed, errors, strict=True)]
        await self._deliveries.finish(done)

    def _after(self, sink: AlertSink, delivery: Delivery, error: str, now_us: int) -> Delivery:
        """Return a notification after an attempt."""
        if not error:
            self._metrics.delivered(delivery.sink, "ok")
            again = sink.resend_us if delivery.event is Event.FIRING else 0
            due_us = now_us + again if again else None
            return replace(delivery, due_us=due_us, attempts=0, is_held=False, delivered_us=now_us, error="")
        attempts = delivery.attempts + 1
        is_over = now_us - max(delivery.create_us, delivery.delivered_us or 0) >= GIVE_UP_US
        self._metrics.delivered(delivery.sink, "given_up" if is_over else "failed")
        _LOG.warning("alert_not_delivered", sink=delivery.sink, alert=delivery.id, attempts=attempts, error=error)
        due_us = None if is_over else now_us + wait_us(attempts, random.random())  # noqa: S311 - only spreads load
        return replace(delivery, due_us=due_us, attempts=attempts, error=f"given up: {error}" if is_over else error)


def _put_off(delivery: Delivery, step: Step, now_us: int) -> Delivery:
    if step is Step.DROP:
        return replace(delivery, due_us=None)
    return replace(delivery, due_us=now_us + _HOLD_US, is_held=delivery.is_held or step is Step.HOLD)
