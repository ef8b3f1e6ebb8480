"""The router keeps what the contract writes down: reasons, hot methods, and a handler for each RPC."""

import ast
from pathlib import Path
from typing import cast

import pytest
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from interlock.inference.v1 import inference_service_pb2 as inference_pb
from interlock.router.v1 import router_service_pb2 as pb
from interlock.types.v1 import error_reason_pb2

from services.common.call import Binding, methods_of
from services.router.app import HTTP, OIP, ROUTER
from services.router.servicer.http import RouterHttpServicer
from services.router.servicer.oip import OipServicer
from services.router.servicer.router import RouterServicer

ROOT = Path(__file__).parents[3]
ENUMS: dict[str, EnumTypeWrapper] = {
    "ERROR_REASON_": cast("EnumTypeWrapper", error_reason_pb2.ErrorReason),
    "ROUTER_ERROR_REASON_": cast("EnumTypeWrapper", pb.RouterErrorReason),
    "INFERENCE_ERROR_REASON_": cast("EnumTypeWrapper", inference_pb.InferenceErrorReason),
}


def documented() -> set[str]:
    return {name.removeprefix(prefix) for prefix, enum in ENUMS.items() for name in enum.keys()}  # noqa: SIM118


def raised() -> dict[str, str]:
    """Every literal reason in the router's code and in the JSON reader that it shares, and where it stands."""
    found = {}
    for path in (*(ROOT / "services/router").rglob("*.py"), ROOT / "services/common/json_body.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "reason" and isinstance(node.value, ast.Constant):
                found[str(node.value.value)] = f"{path.name}:{node.value.lineno}"
    return found


@pytest.mark.parametrize(("reason", "place"), sorted(raised().items()))
def test_every_reason_is_in_the_contract(reason: str, place: str) -> None:
    assert reason in documented(), place


def test_the_router_s_own_reasons_are_all_raised() -> None:
    own = {name.removeprefix("ROUTER_ERROR_REASON_") for name in ENUMS["ROUTER_ERROR_REASON_"].keys()}  # noqa: SIM118
    assert own - {"UNSPECIFIED"} <= set(raised())


def test_every_rpc_has_a_handler_and_the_hot_ones_are_unary() -> None:
    methods = methods_of([
        Binding(ROUTER, RouterServicer.__new__(RouterServicer), hot=frozenset({"Predict", "PredictRows"})),
        Binding(HTTP, RouterHttpServicer.__new__(RouterHttpServicer), hot=frozenset({"Predict", "ModelInfer"})),
        Binding(OIP, OipServicer.__new__(OipServicer), hot=frozenset({"ModelInfer"})),
    ])  # fmt: skip
    assert {method.service for method in methods} == {ROUTER, HTTP, OIP}
    assert all(method.rest_path for method in methods if method.service == HTTP)
