"""The question that goes through the Python loop: its health, over the Unix socket behind the door."""

import grpc
from grpc_health.v1 import health_pb2

_CHECK = "/grpc.health.v1.Health/Check"
_Status = health_pb2.HealthCheckResponse


class HealthProbe:
    """Asks `grpc.health.v1` for the whole server. A dead or blocked loop cannot answer, whatever Envoy says."""

    def __init__(self, socket_path: str, timeout_s: float) -> None:
        self._address = f"unix:{socket_path}"
        self._timeout_s = timeout_s

    async def __call__(self) -> bool:
        """Return whether it serves; raises OSError when no answer came in time."""
        # A channel of its own each time: a restarted process must not be met with an old connection's back-off.
        async with grpc.aio.insecure_channel(self._address) as channel:  # noqa: TID251 - a probe wants no retries
            check = channel.unary_unary(
                _CHECK,
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=_Status.FromString,
            )
            try:
                answer = await check(health_pb2.HealthCheckRequest(), timeout=self._timeout_s, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                raise OSError(f"the health probe failed with {error.code().name}") from None
        return bool(answer.status == _Status.SERVING)
