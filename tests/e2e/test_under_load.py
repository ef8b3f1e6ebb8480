"""Processes replaced, drained and killed while calls are in flight, through each door."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import psutil
import pytest

from tests.e2e.flight import FEATURES, MODEL
from tests.e2e.load import Call, Load, grpc_predict, rest_predict, under_load
from tests.e2e.stack import Stack
from tests.fakes.model_workers import model_workers

pytestmark = pytest.mark.timeout(240)

# What carries the calls, with each door; what stands beside them, once. In Envoy the router is the edge.
PLACES = (
    ("envoy", "router"), ("envoy", "inference"), ("envoy", "features"), ("envoy", "monitor"),
    ("grpcio", "edge"), ("grpcio", "router"), ("grpcio", "inference"), ("grpcio", "registry"), ("grpcio", "redis"),
)  # fmt: skip
PROTOCOLS: dict[str, Callable[..., AbstractAsyncContextManager[Call]]] = {"grpc": grpc_predict, "rest": rest_predict}


@asynccontextmanager
async def loaded(stack: Stack, *, in_flight: int = 8) -> AsyncIterator[dict[str, Load]]:
    """Predict over gRPC and over REST at the same time while the block runs."""
    async with (
        grpc_predict(stack.edge, MODEL, FEATURES) as over_grpc,
        rest_predict(stack.edge, MODEL, FEATURES) as over_rest,
        under_load(over_grpc, in_flight=in_flight) as grpc_load,
        under_load(over_rest, in_flight=in_flight) as rest_load,
    ):
        loads = {"grpc": grpc_load, "rest": rest_load}
        await answered(loads, 50)
        yield loads


async def answered(loads: dict[str, Load], more: int) -> None:
    """Return when each protocol has had this many further answers."""
    await asyncio.gather(*(load.until_answered(more) for load in loads.values()))


@pytest.mark.parametrize(("stack", "service"), PLACES, indirect=["stack"])
async def test_a_restart_loses_and_refuses_no_call(stack: Stack, service: str) -> None:
    before = stack.pid_of(service)
    async with loaded(stack) as loads:
        await asyncio.to_thread(stack.succeed, "restart", service)
        await answered(loads, 50)
    assert stack.pid_of(service) != before
    for protocol, load in loads.items():
        assert not load.outcomes.lost, f"{protocol} {load.outcomes.lost}\n{stack.story()}"
        assert not load.outcomes.refused, f"{protocol} {load.outcomes.refused}\n{stack.story()}"


@pytest.mark.parametrize(("stack", "service"), PLACES, indirect=["stack"])
async def test_sigterm_answers_what_was_accepted(stack: Stack, service: str) -> None:
    before = stack.pid_of(service)
    async with loaded(stack) as loads:
        os.kill(before, signal.SIGTERM)
        await asyncio.to_thread(
            stack.wait_until,
            lambda: stack.status()[service]["pid"] not in (None, before) and stack.is_ready(),
            "the supervisor has started it again",
        )
        await answered(loads, 50)
    for protocol, load in loads.items():
        assert not load.outcomes.lost, f"{protocol} {load.outcomes.lost}\n{stack.story()}"


async def test_a_killed_worker_costs_its_calls_a_clear_error_and_comes_back(stack: Stack) -> None:
    inference = psutil.Process(stack.pid_of("inference"))
    workers = model_workers(inference, MODEL)
    assert len(workers) >= 2, "one process for each version"
    async with loaded(stack) as loads:
        for worker in workers:
            worker.kill()
            await asyncio.to_thread(
                stack.wait_until,
                lambda: len(model_workers(inference, MODEL)) == len(workers),
                "the worker has been started again",
            )
        await answered(loads, 200)
    for protocol, load in loads.items():
        assert not load.outcomes.lost, f"{protocol} {load.outcomes.lost}\n{stack.story()}"
        assert len(load.outcomes.answered) == 2, f"{protocol}: both versions answered"
    assert inference.is_running(), "a model's death is not the service's"


async def test_predictions_go_on_without_the_registry_even_from_a_fresh_router_and_inference(stack: Stack) -> None:
    stack.succeed("stop", "registry")
    try:
        async with loaded(stack) as loads:
            for service in ("inference", "router"):
                await asyncio.to_thread(stack.succeed, "restart", service)
            await answered(loads, 50)
        for protocol, load in loads.items():
            assert not load.outcomes.lost, f"{protocol} {load.outcomes.lost}\n{stack.story()}"
            assert not load.outcomes.refused, f"{protocol} {load.outcomes.refused}\n{stack.story()}"
        for service in ("router", "inference"):
            stack.succeed("stop", service)
        for service in ("inference", "router"):
            stack.succeed("restart", service)
        async with loaded(stack) as loads:
            await answered(loads, 50)
        assert not any(load.outcomes.lost for load in loads.values()), stack.story()
    finally:
        stack.succeed("restart", "registry")
