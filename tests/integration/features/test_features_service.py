"""The features service through the wire: every service of its contract is healthy."""

from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from interlock.features.v1 import (
    feature_job_service_pb2,
    feature_service_pb2,
    feature_view_service_pb2,
    http_service_pb2,
    offline_feature_service_pb2,
)

from services.common.settings import InvalidSettings
from tests.fakes.features_service import running_features

FILES = (
    feature_job_service_pb2.DESCRIPTOR,
    feature_service_pb2.DESCRIPTOR,
    feature_view_service_pb2.DESCRIPTOR,
    http_service_pb2.DESCRIPTOR,
    offline_feature_service_pb2.DESCRIPTOR,
)


async def test_every_service_of_the_contract_is_healthy(tmp_path: Path) -> None:
    names = [service.full_name for file in FILES for service in file.services_by_name.values()]
    async with running_features(tmp_path) as running:
        health = health_pb2_grpc.HealthStub(running.channel)  # type: ignore[no-untyped-call]
        for name in ("", *names):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING, name


@pytest.mark.parametrize(
    ("setting", "uri"), [("features_history_uri", "nowhere://lake"), ("redis_url", "redis+cluster://")]
)
async def test_an_address_that_is_none_is_told_in_one_line(tmp_path: Path, setting: str, uri: str) -> None:
    settings: dict[str, Any] = {setting: uri}
    with pytest.raises(InvalidSettings, match=f"INTERLOCK_{setting.upper()}: ") as caught:
        async with running_features(tmp_path, **settings):
            pass
    assert "\n" not in str(caught.value)
