"""Triton's Python client in its other shapes: asyncio, compression, a stream, shared memory. A job on stdin, answers on stdout.

Runs in `.venv-clients`. The job is that of `triton_client.py`, with `grpc` and `http`, two addresses of one server; `http`
may be empty. Each shape gives the outputs of some requests, or what the server said against it.
"""

import asyncio
import json
import os
import queue
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as over_http
import tritonclient.http.aio as http_aio
from tritonclient.utils import InferenceServerException, serialize_byte_tensor, triton_to_np_dtype
from tritonclient.utils import shared_memory as memory

REQUESTS = 8
TIMEOUT_S = 20.0
OUTPUT_BYTES = 4096


class Job:
    """One model, and requests for it."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.grpc: str = asked["grpc"]
        self.http: str = asked["http"]
        self.specs: list[dict[str, Any]] = asked["inputs"]
        self.name = {"model_name": asked["model"], "model_version": asked["version"]}
        self.output: str = asked["output"]

    def inputs(self, library: Any) -> list[Any]:
        found = []
        for spec in self.specs:
            one = library.InferInput(spec["name"], spec["shape"], spec["datatype"])
            one.set_data_from_numpy(
                np.array(spec["data"], dtype=triton_to_np_dtype(spec["datatype"])).reshape(spec["shape"])
            )
            found.append(one)
        return found

    def told(self, answer: Any) -> dict[str, Any]:
        response = answer.get_response()
        number = response["id"] if isinstance(response, dict) else response.id
        return {"id": number, "data": answer.as_numpy(self.output).ravel().tolist()}


async def asynchronous(job: Job, library: Any, address: str, form: Any) -> list[dict[str, Any]]:
    """All requests at the same time on one connection."""
    async with library.InferenceServerClient(address) as client:
        calls = [client.infer(inputs=job.inputs(form), request_id=str(at), **job.name) for at in range(REQUESTS)]
        return [job.told(answer) for answer in await asyncio.gather(*calls)]


def compressed(job: Job, library: Any, address: str, options: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One request with each of the client's algorithms."""
    client = library.InferenceServerClient(address)
    try:
        return [
            job.told(client.infer(inputs=job.inputs(library), request_id=str(at), **job.name, **option))
            for at, option in enumerate(options)
        ]
    finally:
        client.close()


def streamed(job: Job) -> list[dict[str, Any]]:
    """Requests on one bidirectional stream, one that is wrong among them, read on until each has had its last answer."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with over_grpc.InferenceServerClient(job.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for at in range(REQUESTS):
            inputs = job.inputs(over_grpc)
            client.async_stream_infer(
                inputs=inputs[:1] if at == 3 else inputs,
                request_id=str(at),
                enable_empty_final_response=True,
                **job.name,
            )
        found, left = [], REQUESTS
        while left:
            result, error = answers.get(timeout=TIMEOUT_S)
            found.append({"error": str(error)} if error is not None else job.told(result))
            left -= error is not None or result.get_response().parameters["triton_final_response"].bool_param
        client.stop_stream()
    return found


def shared(job: Job, library: Any, address: str) -> list[dict[str, Any]]:
    """Inputs and the output in system shared memory, the same request again with other values, and a region that is gone."""
    regions: dict[str, Any] = {}
    with library.InferenceServerClient(address) as client:
        client.unregister_system_shared_memory()
        try:
            inputs = job.inputs(library)
            for one, spec in zip(inputs, job.specs, strict=True):
                data = _serialized(spec)
                _create(client, regions, spec["name"], data.nbytes)
                memory.set_shared_memory_region(regions[spec["name"]], [data])
                one.set_shared_memory(spec["name"], data.nbytes)
            _create(client, regions, "answers", OUTPUT_BYTES)
            output = library.InferRequestedOutput(job.output)
            output.set_shared_memory("answers", OUTPUT_BYTES // 2, offset=OUTPUT_BYTES // 2)
            found = []
            for at in range(2):
                answer = client.infer(inputs=inputs, outputs=[output], request_id=str(at), **job.name)
                told, response = answer.get_output(job.output), answer.get_response()
                shape = told["shape"] if isinstance(told, dict) else list(told.shape)
                values = memory.get_contents_as_numpy(regions["answers"], np.float32, shape, OUTPUT_BYTES // 2)
                number = response["id"] if isinstance(response, dict) else response.id
                found.append({"id": number, "data": values.ravel().tolist()})
                # The other order of the rows, in the same bytes of the request.
                for spec in job.specs:
                    memory.set_shared_memory_region(regions[spec["name"]], [_serialized(spec, backwards=True)])
            listed = client.get_system_shared_memory_status()
            names = [one["name"] for one in listed] if isinstance(listed, list) else list(listed.regions)
            client.unregister_system_shared_memory("answers")
            try:
                client.infer(inputs=inputs, outputs=[output], **job.name)
            except InferenceServerException as error:
                found.append({"regions": sorted(names), "error": error.message()})
            return found
        finally:
            client.unregister_system_shared_memory()
            for region in regions.values():
                memory.destroy_shared_memory_region(region)


def _serialized(spec: dict[str, Any], *, backwards: bool = False) -> Any:
    data = spec["data"][::-1] if backwards else spec["data"]
    values = np.array(data, dtype=triton_to_np_dtype(spec["datatype"])).reshape(spec["shape"])
    if spec["datatype"] != "BYTES":
        return values
    return np.frombuffer(serialize_byte_tensor(values).item(), dtype=np.uint8)


def _create(client: Any, regions: dict[str, Any], name: str, size: int) -> None:
    key = f"/il-{os.getpid()}-{name}"
    regions[name] = memory.create_shared_memory_region(name, key, size, create_only=True)
    client.register_system_shared_memory(name, key, size)


def main() -> None:
    """Read the job, do it, write what came back."""
    job = Job(json.load(sys.stdin))
    algorithms = ("gzip", "deflate")
    in_grpc = [{"compression_algorithm": one} for one in algorithms]
    in_http = [{"request_compression_algorithm": one} for one in algorithms]
    in_http += [{"response_compression_algorithm": one} for one in algorithms]
    shapes: dict[str, Callable[[], Any]] = {
        "grpc_aio": lambda: asyncio.run(asynchronous(job, grpc_aio, job.grpc, over_grpc)),
        "grpc_compressed": lambda: compressed(job, over_grpc, job.grpc, in_grpc),
        "stream": lambda: streamed(job),
        "grpc_shared_memory": lambda: shared(job, over_grpc, job.grpc),
    }
    if job.http:
        shapes["http_aio"] = lambda: asyncio.run(asynchronous(job, http_aio, job.http, over_http))
        shapes["http_shared_memory"] = lambda: shared(job, over_http, job.http)
        shapes["http_compressed"] = lambda: compressed(job, over_http, job.http, in_http)
    found: dict[str, Any] = {}
    for shape, run in shapes.items():
        try:
            found[shape] = run()
        except InferenceServerException as error:
            found[shape] = f"{error.status()}: {error.message()}"
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
