"""What a stack consists of, by its settings."""

import sys
from pathlib import Path

import pytest

from interlock_cli.errors import CommandFailed
from interlock_cli.settings import StackSettings
from interlock_cli.stack.plan import Doors, make_plan
from interlock_cli.stack.spec import StackPlan
from interlock_cli.stack.state_folder import StateFolder


def plan(tmp_path: Path, router_door: str, **settings: object) -> StackPlan:
    redis = tmp_path / "redis-server"
    redis.touch()
    made = StackSettings(state_dir=tmp_path, redis_server=redis, port_offset=100, **settings)  # type: ignore[arg-type]
    return make_plan(made, StateFolder.at(tmp_path), Doors(router_door, "grpcio"))


def test_with_the_door_in_envoy_the_router_is_the_edge(tmp_path: Path) -> None:
    made = plan(tmp_path, "envoy")
    assert made.drain_order == ("router", "inference", "features", "registry", "monitor", "redis")
    router = made.services[0]
    assert (router.address, router.environment["INTERLOCK_DOOR"]) == ("http://127.0.0.1:8180", "envoy")
    assert [port.number for port in router.ports] == [8180, 9201]


def test_with_the_door_grpcio_an_edge_of_its_own_stands_before_the_router(tmp_path: Path) -> None:
    made = plan(tmp_path, "grpcio")
    assert made.drain_order[:2] == ("edge", "router")
    edge, router = made.services[:2]
    assert edge.command == (sys.executable, "-m", "services.common.edge")
    assert (edge.address, router.address) == ("http://127.0.0.1:8180", "127.0.0.1:9101")


def test_every_port_moves_with_the_offset_and_none_is_used_twice(tmp_path: Path) -> None:
    numbers = [port.number for _, port in plan(tmp_path, "grpcio").ports]
    assert sorted(numbers) == [8180, 9101, 9102, 9103, 9104, 9105, 9201, 9202, 9203, 9204, 9205]


def test_what_others_need_starts_before_them(tmp_path: Path) -> None:
    waves = [{spec.name for spec in wave} for wave in plan(tmp_path, "grpcio").start_waves]
    assert waves == [{"redis", "registry"}, {"monitor", "features", "inference"}, {"router", "edge"}]


def test_redis_listens_on_a_socket_only_and_keeps_its_data_in_the_state_folder(tmp_path: Path) -> None:
    redis = plan(tmp_path, "envoy").services[-1]
    command = " ".join(redis.command)
    assert f"--port 0 --unixsocket {tmp_path}/run/redis.sock" in command
    assert f"--dir {tmp_path}/redis --appendonly yes" in command
    assert not redis.shares_port


def test_a_redis_that_is_not_there_is_said_with_what_to_do(tmp_path: Path) -> None:
    settings = StackSettings(state_dir=tmp_path, redis_server=tmp_path / "nowhere")
    with pytest.raises(CommandFailed, match="there is no redis-server") as caught:
        make_plan(settings, StateFolder.at(tmp_path), Doors("envoy", "grpcio"))
    assert "INTERLOCK_REDIS_SERVER" in caught.value.hints[0]
