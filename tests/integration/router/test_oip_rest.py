"""The Open Inference Protocol over REST, with the binary tensor extension."""

import json
import struct
from typing import Any

import grpc
import pytest
from google.api.httpbody_pb2 import HttpBody
from interlock.router.v1 import http_service_pb2 as pb

from tests.fakes.router_models import FLIGHT, MIRROR, PAIR
from tests.fakes.router_world import World, eventually
from tests.integration.router.test_oip_grpc import TWO_ELEMENTS

HTTP = "interlock.router.v1.RouterHttpService/"


def pair_body(**changes: object) -> dict[str, Any]:
    tensor = {"name": "x", "shape": [2, 2], "datatype": "FP64", "data": [[1, 2], [3, 4]]}
    return {"id": "mine", "inputs": [tensor | changes]}


@pytest.mark.rpc(HTTP + "ModelInfer", "happy")
@pytest.mark.parametrize("data", [[[1, 2], [3, 4]], [1, 2, 3, 4], [1.0, 2, 3.0, 4]])
async def test_json_tensors_nested_or_flat(world: World, data: list[Any]) -> None:
    status, body = await world.infer(PAIR, pair_body(data=data))
    assert status == 200
    assert (body["model_name"], body["model_version"], body["id"]) == (PAIR, "1", "mine")
    assert body["outputs"] == [{"name": "y", "datatype": "FP64", "shape": [2, 1], "data": [1002.0, 3004.0]}]
    assert body["parameters"]["assignment"] == "per_request"


async def test_binary_tensors_in_and_out(world: World) -> None:
    head = {
        "parameters": {"binary_data_output": True, "user_id": "u-42"},
        "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "parameters": {"binary_data_size": 16}}],
    }
    text = json.dumps(head).encode()
    request = pb.ModelInferHttpRequest(
        model_name=PAIR, body=HttpBody(data=text + struct.pack("<2d", 4, 2), content_type="application/octet-stream")
    )
    status, body, headers = await world.raw("ModelInfer", request, inference_header_content_length=str(len(text)))
    length = int(headers["inference-header-content-length"])
    answer = json.loads(body.data[:length])
    assert (status, body.content_type) == (200, "application/octet-stream")
    assert answer["outputs"] == [
        {"name": "y", "datatype": "FP64", "shape": [1, 1], "parameters": {"binary_data_size": 8}}
    ]
    assert answer["parameters"]["assignment"] == "sticky"
    assert struct.unpack("<d", body.data[length:]) == (4002.0,)


async def test_every_element_type_in_json_and_binary_together(world: World) -> None:
    """The types that JSON can hold go as JSON, the others behind it; outputs are asked for one way each."""
    inputs, outputs, tail = [], [], b""
    for name, (raw, values) in TWO_ELEMENTS.items():
        tensor: dict[str, Any] = {"name": f"in_{name}", "shape": [1, 2], "datatype": name}
        if values is None or name == "BYTES":
            tensor["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
        else:
            tensor["data"] = values
        inputs.append(tensor)
        outputs.append({"name": f"out_{name}", "parameters": {"binary_data": values is None or name == "BYTES"}})
    text = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    request = pb.ModelInferHttpRequest(model_name=MIRROR, body=HttpBody(data=text + tail))
    status, body, headers = await world.raw("ModelInfer", request, inference_header_content_length=str(len(text)))
    assert status == 200, body.data
    length = int(headers["inference-header-content-length"])
    position = length
    for output in json.loads(body.data[:length])["outputs"]:
        raw, values = TWO_ELEMENTS[output["datatype"]]
        if "data" in output:
            assert output["data"] == values
        else:
            size = output["parameters"]["binary_data_size"]
            assert body.data[position : position + size] == raw
            position += size
    assert position == len(body.data)


async def test_texts_travel_as_json_strings(world: World) -> None:
    inputs = [
        {"name": f"in_{name}", "shape": [1, 2], "datatype": name, "data": values or [0, 0]}
        for name, (_, values) in TWO_ELEMENTS.items()
        if name not in ("FP16", "BF16", "BYTES")
    ]
    inputs.append({"name": "in_BYTES", "shape": [1, 2], "datatype": "BYTES", "data": ["ü", ""]})
    tail = b""
    for name in ("FP16", "BF16"):
        raw = TWO_ELEMENTS[name][0]
        tensor: dict[str, Any] = {"name": f"in_{name}", "shape": [1, 2], "datatype": name}
        inputs.append(tensor | {"parameters": {"binary_data_size": len(raw)}})
        tail += raw
    text = json.dumps({"inputs": inputs, "outputs": [{"name": "out_BYTES"}]}).encode()
    status, body = await world.infer(MIRROR, text + tail, inference_header_content_length=str(len(text)))
    assert status == 200, body
    assert body["outputs"][0]["data"] == ["ü", ""]


async def test_a_body_of_nothing_but_one_tensor(world: World) -> None:
    request = pb.ModelInferHttpRequest(model_name=PAIR, body=HttpBody(data=struct.pack("<2d", 4, 2)))
    status, body, headers = await world.raw("ModelInfer", request, inference_header_content_length="0")
    assert status == 200, body.data
    assert struct.unpack("<d", body.data[int(headers["inference-header-content-length"]) :]) == (4002.0,)


async def test_a_version_in_the_path_pins(world: World) -> None:
    status, body = await world.infer(PAIR, pair_body(), version="1")
    assert (status, body["parameters"]["assignment"]) == (200, "pinned")


BAD = [
    (pair_body(data=[[1, 2], [3]]), "want lists of 2 values at depth 2 of data, got a list of 1 values"),
    (pair_body(data=[1, 2, 3]), "want 4 values for the shape [2,2], got 3"),
    (pair_body(data=[[1, 2], [3, "4"]]), 'want numbers for FP64, got the text "4"'),
    (pair_body(data=[[1, 2], [3, True]]), "want numbers for FP64, got true"),
    (pair_body(data=[[1, 2], [3, None]]), "want numbers for FP64, got null"),
    (pair_body(data="abcd"), 'want a list of values in data, got the text "abcd"'),
    (pair_body(data=None), "want a list of values in data, got null"),
    (pair_body(datatype="FP65"), 'want a datatype of the protocol, such as FP32, got the text "FP65"'),
    (pair_body(datatype="FP16"), "FP16 has no typed or JSON form"),
    (pair_body(shape=[2, -2]), "want every dimension from 0"),
    (pair_body(shape=[2**40, 2**40]), "want every dimension from 0"),
    (pair_body(shape=[2.5, 2]), "inputs[0].shape: want whole numbers"),
    (pair_body(shape="22"), "inputs[0].shape: want a list, got the text"),
    (pair_body(nmae="x"), 'inputs[0].nmae: want a field of the contract, got an unknown one; did you mean "name"?'),
    (pair_body() | {"input": []}, 'did you mean "inputs"?'),
    (pair_body() | {"id": 5}, "id: want a text, got 5"),
    (pair_body() | {"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, "want true or false, got 1"),
    (pair_body() | {"outputs": ["y"]}, 'outputs[0]: want an object, got the text "y"'),
    (pair_body() | {"parameters": {"user_id": 5}}, "parameters.user_id: want a text, got 5"),
    ({"inputs": []}, "inputs.x: want a tensor, got nothing"),
    ({"inputs": [5]}, "inputs[0]: want an object, got 5"),
    (pair_body(parameters={"binary_data_size": 16}), "want either data or binary_data_size, got both"),
    (b"{", "the JSON is malformed"),
    (b"", "the JSON is malformed"),
]


@pytest.mark.rpc(HTTP + "ModelInfer", "error")
@pytest.mark.parametrize(("body", "message"), BAD, ids=range(len(BAD)))
async def test_bad_bodies_are_refused_in_the_protocol_s_form(world: World, body: object, message: str) -> None:
    status, answer = await world.infer(PAIR, body)
    assert status == 400, answer
    assert list(answer) == ["error"]
    assert message in answer["error"]
    assert world.replica.items == []


@pytest.mark.parametrize(
    ("header", "size", "tail", "message"),
    [
        ("99999", 16, b"", "want Inference-Header-Content-Length from 0 to"),
        ("-1", 16, b"", "want Inference-Header-Content-Length"),
        ("1_0", 16, b"", "want Inference-Header-Content-Length"),
        ("text", 17, b"x" * 16, "want a whole number of bytes from 0 to the 16 that are left, got 17"),
        ("text", -1, b"x" * 16, "want a whole number of bytes"),
        ("text", "16", b"x" * 16, "want a whole number of bytes"),
        ("text", 16, b"x" * 20, "want 16 bytes of tensors behind the JSON, got 20"),
        ("text", 8, b"x" * 8, "want 16 bytes for 2 elements of FP64, got 8"),
        ("0", 16, b"", "bytes of FP64 for the shape"),
    ],
)
async def test_broken_binary_framing_is_refused(
    world: World, header: str, size: object, tail: bytes, message: str
) -> None:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP64", "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [tensor]}).encode()
    length = str(len(text)) if header == "text" else header
    status, answer = await world.infer(PAIR, text + tail, inference_header_content_length=length)
    assert status == 400
    assert message in answer["error"]
    assert world.replica.items == []


async def test_an_output_without_json_form_is_refused_before_the_model_runs(world: World) -> None:
    inputs, tail = [], b""
    for name, (raw, _) in TWO_ELEMENTS.items():
        tensor: dict[str, Any] = {"name": f"in_{name}", "shape": [1, 2], "datatype": name}
        inputs.append(tensor | {"parameters": {"binary_data_size": len(raw)}})
        tail += raw
    text = json.dumps({"inputs": inputs}).encode()
    status, answer = await world.infer(MIRROR, text + tail, inference_header_content_length=str(len(text)))
    assert status == 400
    assert "outputs.out_FP16: want FP16 as raw bytes" in answer["error"]
    assert world.replica.items == []


@pytest.mark.rpc(HTTP + "ModelMetadata", "happy")
async def test_metadata_is_plain_json(world: World) -> None:
    status, body = await world.get("ModelMetadata", pb.ModelMetadataHttpRequest(model_name=PAIR))
    assert status == 200
    assert body == {
        "name": PAIR,
        "versions": ["1"],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP64", "shape": [-1, 1]}],
    }


@pytest.mark.rpc(HTTP + "ModelMetadata", "error")
async def test_metadata_of_an_unknown_model_is_404(world: World) -> None:
    status, body = await world.get("ModelMetadata", pb.ModelMetadataHttpRequest(model_name="nobody"))
    assert (status, list(body)) == (404, ["error"])


@pytest.mark.rpc(HTTP + "ModelReady", "happy")
@pytest.mark.rpc(HTTP + "ModelReady", "error")
async def test_a_model_is_ready_or_503_or_404(world: World) -> None:
    assert await world.get("ModelReady", pb.ModelReadyHttpRequest(model_name=PAIR)) == (
        200,
        {"name": PAIR, "ready": True},
    )
    world.replica.set_ready({(FLIGHT, "1")})
    await eventually(lambda: world.replica.streams == 1)
    status, body = await world.get("ModelReady", pb.ModelReadyHttpRequest(model_name=PAIR))
    assert (status, body["ready"]) == (503, False)
    assert (await world.get("ModelReady", pb.ModelReadyHttpRequest(model_name="nobody")))[0] == 404


@pytest.mark.rpc(HTTP + "RepositoryIndex", "happy")
async def test_the_index_is_a_list(world: World) -> None:
    status, body = await world.get("RepositoryIndex", pb.RepositoryIndexHttpRequest())
    assert status == 200
    assert {"name": PAIR, "version": "1", "state": "READY", "reason": ""} in body


@pytest.mark.rpc(HTTP + "RepositoryIndex", "error")
async def test_the_index_refuses_unknown_fields(world: World) -> None:
    request = pb.RepositoryIndexHttpRequest(body=HttpBody(data=b'{"redy": true}'))
    status, body = await world.get("RepositoryIndex", request)
    assert status == 400
    assert 'did you mean "ready"?' in body["error"]


@pytest.mark.rpc(HTTP + "RepositoryModelLoad", "error")
@pytest.mark.rpc(HTTP + "RepositoryModelUnload", "error")
async def test_load_and_unload_say_who_decides(world: World) -> None:
    load = await world.get("RepositoryModelLoad", pb.RepositoryModelLoadHttpRequest(model_name=PAIR))
    unload = await world.get("RepositoryModelUnload", pb.RepositoryModelUnloadHttpRequest(model_name=PAIR))
    assert load == unload
    assert load[0] == 400
    assert "the registry alone decides" in load[1]["error"]


@pytest.mark.rpc(HTTP + "ServerMetadata", "happy")
async def test_server_metadata(world: World) -> None:
    status, body = await world.get("ServerMetadata", pb.ServerMetadataHttpRequest())
    assert (status, body["name"]) == (200, "interlock-router")
    assert "binary_tensor_data" in body["extensions"]


@pytest.mark.rpc(HTTP + "ServerLive", "happy")
@pytest.mark.rpc(HTTP + "ServerReady", "happy")
async def test_live_and_ready(world: World) -> None:
    assert await world.get("ServerLive", pb.ServerLiveHttpRequest()) == (200, {"live": True})
    assert await world.get("ServerReady", pb.ServerReadyHttpRequest()) == (200, {"ready": True})


@pytest.mark.rpc(HTTP + "ServerLive", "error")
@pytest.mark.rpc(HTTP + "ServerMetadata", "error")
@pytest.mark.parametrize("method", ["ServerLive", "ServerMetadata"])
async def test_malformed_messages_are_bodies_too(world: World, method: str) -> None:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, HttpBody] = world.channel.unary_unary(
        f"/{HTTP}{method}", response_deserializer=HttpBody.FromString
    )
    answering = call(b"\xff\xff", timeout=5)
    body = await answering
    headers = dict(await answering.initial_metadata())
    assert headers["x-interlock-http-status"] == "400"
    assert list(json.loads(body.data)) == ["error"]
