"""The only dialler: channels with one profile of keepalive, balancing, ejection and retry.

In grpc.aio a cancellation travels to the next hop by itself, a deadline does not: the interceptors here pass on what is
left of it, with the request id and the trace context of the call being answered.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import grpc

from services.common.call import Call, current_call
from services.common.chain import REQUEST_ID_KEY, TRACEPARENT_KEY

DEFAULT_MESSAGE_BYTES: Final = 32 * 1024 * 1024
_DEFAULT_TIMEOUT_S: Final = 5.0
# Left for the way back and for turning a peer's silence into an answer.
_RETURN_MARGIN_S: Final = 0.005
_ATTEMPT_TIMED_OUT: Final = "perAttemptRecvTimeout exceeded"

_KEEPALIVE: Final[Sequence[tuple[str, Any]]] = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 1_000),
    # The one that current grpcio honours; without it a frozen peer is noticed after a minute.
    ("grpc.http2.ping_timeout_ms", 1_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # It bounds a try to connect, too: less fails against a live peer that a busy machine lets wait.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
_EJECTION: Final = {
    "interval": "0.5s",
    "baseEjectionTime": "5s",
    "maxEjectionPercent": 50,
    "failurePercentageEjection": {
        "threshold": 50,
        # gRPC would eject a lone host too, and counts every answer that is not OK, a caller's mistake among them.
        "minimumHosts": 2,
        "requestVolume": 5,
        "enforcementPercentage": 100,
    },
    "childPolicy": [{"round_robin": {}}],
}
# UNAVAILABLE, and CANCELLED because a grpcio server that stops answers it for calls it has not handed over yet
# (grpc/grpc#41785); our chain never does, and a caller that cancels does not retry.
_RETRYABLE: Final = ["UNAVAILABLE", "CANCELLED"]


def open_channel(
    address: str,
    *,
    idempotent: Iterable[str] = (),
    attempt_timeout_s: float | None = None,
    hop_timeout_s: float | None = None,
    health_name: str = "",
    ejection: bool = True,
    message_limit_bytes: int = DEFAULT_MESSAGE_BYTES,
) -> grpc.aio.Channel:
    """Return a channel for unary calls and short streams.

    `address` is a gRPC target (`dns:///name:port`, `ipv4:a:1,b:2`, `unix:/path`, `host:port`). `idempotent` lists full
    method names (`package.Service/Method`) that may be tried twice; `attempt_timeout_s` bounds each of their tries and
    must lie above the peer's p99.9. `hop_timeout_s` caps each unary call below the caller's deadline. `health_name` is
    the name on the peer's health board without which no call goes there. `ejection` keeps calls from an address that
    fails half of them; it counts every status but OK as a failure, so it is not for a hop whose callers' mistakes come
    back as errors of the peer.
    """
    options = [
        *_options(message_limit_bytes),
        # Unlocks perAttemptRecvTimeout in the retry policy.
        ("grpc.experimental.enable_hedging", 1),
        ("grpc.service_config", service_config(idempotent, attempt_timeout_s, health_name, ejection=ejection)),
    ]
    carry = _Carry(hop_timeout_s)
    interceptors: list[grpc.aio.ClientInterceptor] = [
        _UnaryUnary(carry),
        _UnaryStream(carry),
        _StreamUnary(carry),
        _StreamStream(carry),
    ]
    return grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)  # noqa: TID251 - the dialler


def open_stream_channel(address: str, *, message_limit_bytes: int = DEFAULT_MESSAGE_BYTES) -> grpc.aio.Channel:
    """Return a channel to one replica for long-lived streams: keepalive and reconnect only.

    Choice, retry and time-outs are the caller's; each message carries its own deadline and trace context.
    """
    # Without a pool of its own two channels to one address would share a connection, and its flow control.
    options = [*_options(message_limit_bytes), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(address, options=options)  # noqa: TID251 - the dialler


def service_config(
    idempotent: Iterable[str], attempt_timeout_s: float | None, health_name: str = "", *, ejection: bool = True
) -> str:
    """Return the gRPC service config as the JSON text that a channel takes."""
    balancing: dict[str, Any] = {"outlier_detection_experimental": _EJECTION} if ejection else {"round_robin": {}}
    config: dict[str, Any] = {
        "loadBalancingConfig": [balancing],
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
    }
    methods = [dict(zip(("service", "method"), name.split("/"), strict=True)) for name in idempotent]
    if methods:
        config["methodConfig"] = [{"name": methods, "retryPolicy": _retry_policy(attempt_timeout_s)}]
    if health_name:
        config["healthCheckConfig"] = {"serviceName": health_name}
    return json.dumps(config)


def _retry_policy(attempt_timeout_s: float | None) -> dict[str, Any]:
    policy: dict[str, Any] = {
        "maxAttempts": 2,
        "initialBackoff": "0.01s",
        "maxBackoff": "0.1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": _RETRYABLE,
    }
    if attempt_timeout_s is not None:
        policy["perAttemptRecvTimeout"] = f"{attempt_timeout_s:.3f}s"
    return policy


def _options(message_limit_bytes: int) -> list[tuple[str, Any]]:
    return [
        *_KEEPALIVE,
        ("grpc.max_receive_message_length", message_limit_bytes),
        ("grpc.max_send_message_length", message_limit_bytes),
    ]


class _Carry:
    """Works out what an outgoing call takes along from the call being answered."""

    def __init__(self, hop_timeout_s: float | None) -> None:
        self._hop_timeout_s = hop_timeout_s

    def unary(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        """Details with a timeout always: the least of what was asked, the hop's cap and what the call has left."""
        call = current_call()
        wishes = (details.timeout, self._hop_timeout_s, _left_s(call))
        given = [wish for wish in wishes if wish is not None]
        return _with(details, min(given) if given else _DEFAULT_TIMEOUT_S, call)

    def stream(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        """Details with a timeout only where one was asked for or the call being answered has one."""
        call = current_call()
        given = [wish for wish in (details.timeout, _left_s(call)) if wish is not None]
        return _with(details, min(given) if given else None, call)


def _left_s(call: Call | None) -> float | None:
    if call is None or call.remaining_s() == float("inf"):
        return None
    return max(0.0, call.remaining_s() - _RETURN_MARGIN_S)


def _with(
    details: grpc.aio.ClientCallDetails, timeout_s: float | None, call: Call | None
) -> grpc.aio.ClientCallDetails:
    metadata: list[tuple[str, Any]] = [(key, value) for key, value in details.metadata or ()]
    known = {key for key, _ in metadata}
    metadata.extend((key, value) for key, value in _carried(call).items() if value and key not in known)
    return grpc.aio.ClientCallDetails(
        method=details.method,
        timeout=timeout_s,
        metadata=grpc.aio.Metadata(*metadata),
        credentials=details.credentials,
        wait_for_ready=details.wait_for_ready,
    )


def _carried(call: Call | None) -> Mapping[str, str]:
    return {} if call is None else {REQUEST_ID_KEY: call.request_id, TRACEPARENT_KEY: call.traceparent}


def _translated(error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
    """Return the error that a last attempt's time-out means: grpcio reports it as if the caller had cancelled."""
    if error.code() is not grpc.StatusCode.CANCELLED or _ATTEMPT_TIMED_OUT not in (error.details() or ""):
        return error
    return grpc.aio.AioRpcError(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        error.initial_metadata(),
        error.trailing_metadata(),
        details="every attempt timed out",
        debug_error_string=error.debug_error_string(),
    )


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, carry: _Carry) -> None:
        self._carry = carry

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        call = await continuation(self._carry.unary(client_call_details), request)
        try:
            await call
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from None
        return call


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, carry: _Carry) -> None:
        self._carry = carry

    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(self._carry.stream(client_call_details), request)


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):
    def __init__(self, carry: _Carry) -> None:
        self._carry = carry

    async def intercept_stream_unary(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request_iterator: Any
    ) -> Any:
        return await continuation(self._carry.stream(client_call_details), request_iterator)


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):
    def __init__(self, carry: _Carry) -> None:
        self._carry = carry

    async def intercept_stream_stream(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request_iterator: Any
    ) -> Any:
        return await continuation(self._carry.stream(client_call_details), request_iterator)
