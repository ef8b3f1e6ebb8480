"""The short form of `tests/proof/bad_input.py`, and numbers that are none."""

import json
import math
import struct

import grpc
import pytest
from google.api.httpbody_pb2 import HttpBody
from inference.grpc_service_pb2 import ModelInferRequest
from interlock.router.v1 import http_service_pb2 as pb
from interlock.router.v1.router_service_pb2 import PredictRequest

from tests.fakes.router_models import MIRROR, MIRROR_TYPES, PAIR
from tests.fakes.router_world import README, World, error_of
from tests.integration.router.test_oip_grpc import TWO_ELEMENTS
from tests.proof.bad_input import Wrong, ask_all, faults_of_malformed, malformed_json, requests
from tests.proof.fuzz import targets
from tests.proof.fuzz_wire import bugs, fuzz_grpc, router_methods
from tests.proof.public_port import public_port

# Half, single, double and brain float: not a number, and both infinities.
NOT_FINITE = {
    "FP16": [b"\x00\x7e", b"\x00\x7c", b"\x00\xfc"],
    "FP32": [struct.pack("<f", value) for value in (math.nan, math.inf, -math.inf)],
    "FP64": [struct.pack("<d", value) for value in (math.nan, math.inf, -math.inf)],
    "BF16": [b"\xc0\x7f", b"\x80\x7f", b"\x80\xff"],
}


async def test_what_is_wrong_in_one_way_is_the_callers_mistake(world: World) -> None:
    asked, found = await ask_all(world, requests(600, seed=1))
    assert not found, found[:10]
    assert len(asked) == 22, "every kind of fault was asked for"
    assert (await world.post("/v1/predict", README))[0] == 200


async def test_two_hundred_bodies_that_are_no_request_get_a_status(world: World) -> None:
    bodies = list(malformed_json(200, seed=1))
    assert len(bodies) == 200
    found = [fault for body in bodies for fault in await faults_of_malformed(world, body)]
    assert not found, found[:10]


async def test_the_same_is_refused_at_a_public_port(world: World) -> None:
    async with public_port(world, "envoy") as port:
        await port.ask_all(requests(300, seed=2), malformed_json(80, seed=2))
        assert not port.faults, port.faults[:10]
        assert port.asked > 550
        await port.ask(Wrong("nothing", json.dumps(README).encode()))
        assert len(port.faults) == 1, "what is right would be noticed"


async def test_bytes_that_are_hardly_a_request_never_make_it_fail(world: World) -> None:
    good = {name: target.good for name, target in targets().items()}
    items = good["PredictStream"]
    methods = router_methods(good["Predict"], good["PredictRows"], good["ModelInfer at the router"], items[0], items)
    for method in methods:
        ended = await fuzz_grpc(world.channel, method, 150, seed=1)
        assert not bugs(ended), bugs(ended)
        assert ended["INVALID_ARGUMENT"], f"{method.name} was reached: {ended}"
    assert (await world.post("/v1/predict", README))[0] == 200


@pytest.mark.parametrize("name", NOT_FINITE)
async def test_tensors_that_are_not_finite_are_the_same_by_grpc_and_rest(world: World, name: str) -> None:
    for element in NOT_FINITE[name]:
        raw = {key: both for key, (both, _) in TWO_ELEMENTS.items()}
        raw[name] = raw[name][: len(element)] + element
        request = ModelInferRequest(model_name=MIRROR)
        inputs = []
        for key in MIRROR_TYPES:
            request.inputs.add(name=f"in_{key}", datatype=key, shape=[1, 2])
            request.raw_input_contents.append(raw[key])
            size = {"binary_data_size": len(raw[key])}
            inputs.append({"name": f"in_{key}", "datatype": key, "shape": [1, 2], "parameters": size})
        answer = await world.oip.ModelInfer(request, timeout=5)
        assert list(answer.raw_output_contents) == [raw[key] for key in MIRROR_TYPES]
        head = json.dumps({"parameters": {"binary_data_output": True}, "inputs": inputs}).encode()
        body = HttpBody(data=head + b"".join(request.raw_input_contents), content_type="application/octet-stream")
        asked = pb.ModelInferHttpRequest(model_name=MIRROR, body=body)
        status, found, headers = await world.raw("ModelInfer", asked, inference_header_content_length=str(len(head)))
        assert status == 200
        length = int(headers["inference-header-content-length"])
        assert found.data[length:] == b"".join(answer.raw_output_contents)


async def test_what_is_not_finite_is_null_in_json(world: World) -> None:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1e308, 1e308]}
    status, body = await world.infer(PAIR, {"inputs": [tensor]})
    assert status == 200
    assert body["outputs"][0]["data"] == [None], "a thousand times the largest number is infinite"


@pytest.mark.parametrize(("value", "text"), [(math.nan, "NaN"), (math.inf, "1e400"), (-math.inf, "-1e400")])
async def test_numbers_that_are_not_finite_are_refused_by_grpc_and_rest(world: World, value: float, text: str) -> None:
    request = PredictRequest(model=PAIR)
    request.features["a"].double_value = value
    request.features["b"].double_value = 1
    error = await error_of(world.router.Predict(request, timeout=5))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    body = f'{{"model": "{PAIR}", "features": {{"a": {text}, "b": 1}}}}'
    status, answer = await world.post("/v1/predict", body.encode())
    assert (status, answer["code"]) == (400, grpc.StatusCode.INVALID_ARGUMENT.value[0])
    tensor = f'{{"inputs": [{{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [{text}, 1]}}]}}'
    status, _ = await world.infer(PAIR, tensor.encode())
    assert status == 400
