"""The connection to the edge, and how a call is made on it."""

import json
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from interlock_sdk.errors import call_error_from_rpc

MAX_MESSAGE_BYTES = 32 * 1024 * 1024

# Every RPC of these may be sent twice: reads by their nature, changes by their request_id. An upload is not among them:
# it goes on where it stopped, which a blind second attempt would not.
_RETRIED = (
    {"service": "interlock.router.v1.RouterService"},
    {"service": "interlock.registry.v1.RegistryService"},
    {"service": "interlock.registry.v1.ArtifactService", "method": "GetArtifact"},
    {"service": "interlock.features.v1.FeatureService", "method": "ReadFeatures"},
    {"service": "interlock.features.v1.FeatureService", "method": "PushFeatures"},
    {"service": "interlock.features.v1.FeatureViewService"},
    {"service": "interlock.monitor.v1.AnalysisService"},
    {"service": "interlock.monitor.v1.FeedbackService", "method": "SendFeedback"},
    {"service": "interlock.monitor.v1.PredictionLogService"},
    {"service": "interlock.monitor.v1.MonitoringPolicyService"},
    {"service": "interlock.monitor.v1.AlertService"},
)
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": list(_RETRIED),
            "retryPolicy": {
                "maxAttempts": 2,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
}
_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class Page(Protocol):
    """What every answer to a list call has."""

    next_page_token: str


Request = TypeVar("Request")
Response = TypeVar("Response")
PageResponse = TypeVar("PageResponse", bound=Page)


class Caller:
    """Makes calls on one channel: each has a time limit, and each failure is a CallError."""

    def __init__(self, channel: grpc.aio.Channel, target: str, timeout_s: float) -> None:
        self.channel = channel
        self._target = target
        self._timeout_s = timeout_s

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        timeout_s: float | None = None,
    ) -> Response:
        """Makes a unary call. Raises CallError."""
        return await self.answer(method(request, timeout=timeout_s or self._timeout_s))

    async def answer(self, running: Awaitable[Response]) -> Response:
        """Waits for a call that has begun. Raises CallError."""
        try:
            return await running
        except grpc.aio.AioRpcError as error:
            raise call_error_from_rpc(error, self._target) from None

    async def stream(self, running: AsyncIterable[Response]) -> AsyncIterator[Response]:
        """Walks the answers of a call that has begun. Raises CallError."""
        try:
            async for answer in running:
                yield answer
        except grpc.aio.AioRpcError as error:
            raise call_error_from_rpc(error, self._target) from None

    async def pages(self, fetch: Callable[[str], Awaitable[PageResponse]]) -> AsyncIterator[PageResponse]:
        """Walks a list call, giving each page's token to `fetch`, until there is no next page."""
        page_token = ""
        while True:
            page = await fetch(page_token)
            yield page
            page_token = page.next_page_token
            if not page_token:
                return


@asynccontextmanager
async def open_caller(
    target: str, credentials: grpc.ChannelCredentials | None, timeout_s: float
) -> AsyncIterator[Caller]:
    """Opens a channel for as long as the context lasts; without credentials it is neither encrypted nor identified."""
    # gRPC would send calls to this machine through a configured proxy too.
    options = (*_OPTIONS, ("grpc.enable_http_proxy", int(not _is_loopback(target))))
    if credentials is None:
        channel = grpc.aio.insecure_channel(target, options)  # noqa: TID251  the SDK may not import the services' dialler
    else:
        channel = grpc.aio.secure_channel(target, credentials, options)
    async with channel:
        yield Caller(channel, target, timeout_s)


def _is_loopback(target: str) -> bool:
    host = target.rpartition(":")[0].strip("[]")
    return host in {"localhost", "::1"} or host.startswith("127.")


def new_request_id() -> str:
    """Gives an idempotency key: a change that is sent twice with it happens once."""
    return str(uuid.uuid4())
