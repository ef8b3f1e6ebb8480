"""Who is told about alerts: the log, webhooks, Alertmanagers. Only addresses of the settings are ever called."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import httpx
import structlog

from services.monitor.domain.alert import LOG_SINK
from services.monitor.domain.alert_delivery import (
    Delivery,
    alert_facts,
    alertmanager_alerts,
    sign,
    summary,
    webhook_body,
)
from services.monitor.domain.alert_ports import AlertSink

_LOG: Final = structlog.get_logger(part="alerts")
_AT_ONCE: Final = 8
_ERROR_LIMIT_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where a webhook is, and what its signature is made with."""

    url: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Alertmanager:
    """Where an Alertmanager is, without /api/v2; a bearer token, empty for none."""

    url: str
    bearer_token: str = field(repr=False)


class LogSink:
    """Writes a line."""

    resend_us = 0

    async def send(self, deliveries: Sequence[Delivery], now_us: int) -> Sequence[str]:
        """Write one line for each."""
        for delivery in deliveries:
            _LOG.warning(
                "alert", what=delivery.event.value, summary=summary(delivery.alert), **alert_facts(delivery.alert)
            )
        return [""] * len(deliveries)


class WebhookSink:
    """Posts each notification as JSON, signed."""

    resend_us = 0

    def __init__(self, client: httpx.AsyncClient, target: Webhook, clock: Callable[[], float] = time.time) -> None:
        self._client = client
        self._url = target.url
        self._secret = target.secret
        self._clock = clock

    async def send(self, deliveries: Sequence[Delivery], now_us: int) -> Sequence[str]:
        """Post them, several at a time."""
        room = asyncio.Semaphore(_AT_ONCE)

        async def post(delivery: Delivery) -> str:
            async with room:
                return await self._post(delivery)

        return await asyncio.gather(*map(post, deliveries))

    async def _post(self, delivery: Delivery) -> str:
        body, timestamp = webhook_body(delivery), int(self._clock())
        headers = {
            "content-type": "application/json",
            "interlock-delivery": delivery.id,
            "interlock-timestamp": str(timestamp),
            "interlock-signature": sign(self._secret, timestamp, body),
        }
        return await _posted(self._client, self._url, body, headers)


class AlertmanagerSink:
    """Posts to Alertmanager's API version 2, all notifications at once, and firing ones again and again."""

    def __init__(self, client: httpx.AsyncClient, target: Alertmanager, resend_s: float) -> None:
        self._client = client
        self._url = f"{target.url.rstrip('/')}/api/v2/alerts"
        token = target.bearer_token
        self._headers = {"content-type": "application/json", **({"authorization": f"Bearer {token}"} if token else {})}
        self.resend_us = int(resend_s * 1e6)

    async def send(self, deliveries: Sequence[Delivery], now_us: int) -> Sequence[str]:
        """Post them."""
        body = json.dumps(alertmanager_alerts(deliveries, now_us, self.resend_us)).encode()
        return [await _posted(self._client, self._url, body, self._headers)] * len(deliveries)


@asynccontextmanager
async def open_sinks(
    configured: Mapping[str, Webhook | Alertmanager], *, timeout_s: float, resend_s: float
) -> AsyncIterator[Mapping[str, AlertSink]]:
    """Open the configured sinks, and the log."""
    # No redirect is followed and no proxy of the environment used: only the address of the settings is called.
    async with httpx.AsyncClient(timeout=timeout_s, follow_redirects=False, trust_env=False) as client:
        sinks: dict[str, AlertSink] = {LOG_SINK: LogSink()}
        for name, target in configured.items():
            if isinstance(target, Webhook):
                sinks[name] = WebhookSink(client, target)
            else:
                sinks[name] = AlertmanagerSink(client, target, resend_s)
        yield sinks


async def _posted(client: httpx.AsyncClient, url: str, body: bytes, headers: Mapping[str, str]) -> str:
    """Post; returns what went wrong, empty for success. An answer is read no further than its status."""
    try:
        async with client.stream("POST", url, content=body, headers=dict(headers)) as response:
            return "" if response.is_success else f"answered {response.status_code}"
    except httpx.HTTPError as error:
        return (str(error) or type(error).__name__)[:_ERROR_LIMIT_CHARS]
