"""What a user of the KServe SDK does, unchanged: a job on stdin, answers on stdout. Runs in `.venv-clients`.

The job is that of `triton_more.py`.
"""

import asyncio
import json
import logging
import sys
from typing import Any

import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

DTYPES = {"FP32": np.float32, "BYTES": np.object_}


def request(asked: dict[str, Any], *, binary: bool) -> InferRequest:
    """The job's tensors, raw or typed."""
    inputs = []
    for spec in asked["inputs"]:
        one = InferInput(spec["name"], spec["shape"], spec["datatype"])
        values = np.array(spec["data"], dtype=DTYPES[spec["datatype"]]).reshape(spec["shape"])
        one.set_data_from_numpy(values, binary_data=binary)
        inputs.append(one)
    # Over REST this client names no version: the user decides.
    user = {"user_id": "u-42"}
    return InferRequest(asked["model"], inputs, request_id="job-9", model_version=asked["version"], parameters=user)


def told(answer: Any, output: str) -> dict[str, Any]:
    found = next(one for one in answer.outputs if one.name == output)
    return {
        "id": answer.id,
        "model": answer.model_name,
        "version": answer.model_version,
        "data": np.asarray(found.as_numpy()).ravel().tolist(),
    }


async def over_rest(asked: dict[str, Any]) -> dict[str, Any]:
    client, url, model = InferenceRESTClient(RESTConfig(protocol="v2")), f"http://{asked['http']}", asked["model"]
    try:
        found: dict[str, Any] = {
            "ready": await client.is_server_ready(url),
            "live": await client.is_server_live(url),
            "model_ready": await client.is_model_ready(url, model),
            "unknown_model_ready": await client.is_model_ready(url, "no-such-model"),
        }
        for form in ("typed", "binary"):
            answer = await client.infer(url, request(asked, binary=form == "binary"), model_name=model)
            found[form] = told(answer, asked["output"])
        try:
            await client.infer(url, request(asked, binary=False), model_name="no-such-model")
        except httpx.HTTPStatusError as error:
            found["unknown_model"] = str(error)
        return found
    finally:
        await client.close()


async def over_grpc(asked: dict[str, Any]) -> dict[str, Any]:
    async with InferenceGRPCClient(url=asked["grpc"]) as client:
        found: dict[str, Any] = {
            "ready": await client.is_server_ready(),
            "live": await client.is_server_live(),
            "model_ready": await client.is_model_ready(asked["model"]),
        }
        for form in ("typed", "binary"):
            answer = await client.infer(request(asked, binary=form == "binary"))
            found[form] = told(answer, asked["output"])
        return found


async def run(asked: dict[str, Any]) -> dict[str, Any]:
    found = {"grpc": await over_grpc(asked)}
    if asked["http"]:
        found["rest"] = await over_rest(asked)
    return found


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    json.dump(asyncio.run(run(json.load(sys.stdin))), sys.stdout)
