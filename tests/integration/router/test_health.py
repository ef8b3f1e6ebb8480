"""Health: NOT_SERVING until there is a configuration, and what the probes say."""

import grpc
import pytest
from grpc_health.v1 import health_pb2
from interlock.router.v1 import http_service_pb2 as pb
from interlock.router.v1 import router_service_pb2

from tests.fakes.router_models import PAIR
from tests.fakes.router_world import World, error_of, eventually, reason_of

HEALTH = "interlock.router.v1.RouterHttpService/Health"
READY = "interlock.router.v1.RouterHttpService/ServerReady"


async def _serving(world: World, name: str) -> bool:
    check: grpc.aio.UnaryUnaryMultiCallable[bytes, health_pb2.HealthCheckResponse] = world.channel.unary_unary(
        "/grpc.health.v1.Health/Check", response_deserializer=health_pb2.HealthCheckResponse.FromString
    )
    answer = await check(health_pb2.HealthCheckRequest(service=name).SerializeToString(), timeout=5)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.mark.rpc(HEALTH, "error")
@pytest.mark.rpc(READY, "error")
async def test_nothing_serves_before_the_first_configuration(idle_world: World) -> None:
    assert idle_world.control_server is not None
    await idle_world.control_server.stop(0)
    await idle_world.start_router(wait=False)
    for name in ("", "interlock.router.v1.RouterService", "inference.GRPCInferenceService"):
        assert not await _serving(idle_world, name)
    error = await error_of(idle_world.router.Predict(router_service_pb2.PredictRequest(model=PAIR), timeout=5))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "NO_CONFIGURATION")
    status, body = await idle_world.post("/v1/predict", {"model": PAIR})
    assert (status, body["code"]) == (503, 14)
    assert await idle_world.get("ServerReady", pb.ServerReadyHttpRequest()) == (503, {"ready": False})
    assert await idle_world.get("Health", pb.HealthHttpRequest()) == (200, {"status": "SERVING"})
    for probe in ("ready", "startup"):
        assert await idle_world.get("Health", pb.HealthHttpRequest(probe=probe)) == (503, {"status": "NOT_SERVING"})


@pytest.mark.rpc(HEALTH, "happy")
async def test_everything_serves_once_a_configuration_is_applied(world: World) -> None:
    await eventually(lambda: world.running.runtime.health.ready)
    for name in ("", "interlock.router.v1.RouterService", "inference.GRPCInferenceService"):
        assert await _serving(world, name)
    for probe in ("", "ready", "startup"):
        assert await world.get("Health", pb.HealthHttpRequest(probe=probe)) == (200, {"status": "SERVING"})
    assert (await world.get("Health", pb.HealthHttpRequest(probe="nonsense")))[0] == 400
