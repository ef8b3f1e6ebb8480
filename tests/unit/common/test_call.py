"""The call and the method table."""

import time
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from services.common.call import Binding, Call, methods_of, raw
from services.common.health import HealthBoard, HealthServicer, health_binding

HEALTH = "grpc.health.v1.Health"


class Incomplete:
    async def Check(self, request: Any, call: Call) -> Any:
        return request


class WrongShape(Incomplete):
    List = Incomplete.Check

    async def Watch(self, request: Any, call: Call) -> Any:
        return request


class Yielding(HealthServicer):
    async def Check(self, request: Any, call: Call) -> Any:
        yield request


class Raw(HealthServicer):
    @raw
    async def Check(self, request: Any, call: Call) -> Any:
        return request


def test_the_table_has_every_method_of_the_contract() -> None:
    methods = {method.name: method for method in methods_of([health_binding(HealthBoard())])}
    assert set(methods) == {"Check", "List", "Watch"}
    assert (methods["Check"].streaming, methods["Watch"].server_streaming) == (False, True)
    assert methods["Check"].request is health_pb2.HealthCheckRequest
    assert methods["Check"].full_name == "grpc.health.v1.Health/Check"
    assert methods["Check"].path == "/grpc.health.v1.Health/Check"


def test_marks_reach_the_table() -> None:
    methods = {m.name: m for m in methods_of([Binding(HEALTH, Raw(HealthBoard()), hot=frozenset({"Check"}))])}
    assert (methods["Check"].raw, methods["Check"].hot) == (True, True)
    assert (methods["List"].raw, methods["List"].hot) == (False, False)


@pytest.mark.parametrize(
    ("binding", "said"),
    [
        (Binding(HEALTH, Incomplete()), "without a handler: List, Watch"),
        (Binding(HEALTH, WrongShape()), "Watch must be an async generator"),
        (Binding(HEALTH, Yielding(HealthBoard())), "Check must be a coroutine function"),
        (Binding("no.such.Service", object()), "in no descriptor"),
        (Binding(HEALTH, HealthServicer(HealthBoard()), hot=frozenset({"Watch"})), "no unary RPC called Watch"),
    ],
)
def test_a_hole_in_the_table_stops_the_start(binding: Binding, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        methods_of([binding])


def test_a_service_is_bound_once() -> None:
    with pytest.raises(TypeError, match="bound twice"):
        methods_of([health_binding(HealthBoard()), health_binding(HealthBoard())])


def test_a_call_is_cancelled_when_the_caller_is_gone_or_the_deadline_passed() -> None:
    open_call = Call("m", deadline=time.monotonic() + 60)
    late = Call("m", deadline=time.monotonic() - 1)
    gone = Call("m", abandoned=True)
    assert (open_call.cancelled, late.cancelled, gone.cancelled) == (False, True, True)
    assert 59 < open_call.remaining_s() <= 60
    assert (late.remaining_s(), gone.remaining_s()) == (0.0, float("inf"))
