"""Triton's Python client in its other shapes: asyncio, compression, a stream, shared memory. A job on stdin, answers on stdout.

Runs in `.venv-clients`. The job is that of `triton_client.py`, with `grpc` and `http`, two addresses of one server; `http`
may be empty. Each shape gives the outputs of some requests, or what the server said against it.
"""

import asyncio
import json
import queue
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as over_http
import tritonclient.http.aio as http_aio
from tritonclient.utils import InferenceServerException, triton_to_np_dtype
from tritonclient.utils import shared_memory as memory

REQUESTS = 8
TIMEOUT_S = 20.0


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
    """Requests on one bidirectional stream, one that is wrong among them."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with over_grpc.InferenceServerClient(job.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for at in range(REQUESTS):
            inputs = job.inputs(over_grpc)
            client.async_stream_infer(inputs=inputs[:1] if at == 3 else inputs, request_id=str(at), **job.name)
        found = []
        for _ in range(REQUESTS):
            result, error = answers.get(timeout=TIMEOUT_S)
            found.append({"error": str(error)} if error is not None else job.told(result))
        client.stop_stream()
    return found


def shared(job: Job) -> list[dict[str, Any]]:
    """Inputs and outputs in system shared memory."""
    with over_grpc.InferenceServerClient(job.grpc) as client:
        client.get_system_shared_memory_status()
        inputs, regions = job.inputs(over_grpc), []
        try:
            for one, spec in zip(inputs, job.specs, strict=True):
                values = np.array(spec["data"], dtype=triton_to_np_dtype(spec["datatype"])).reshape(spec["shape"])
                size = len(one._get_content()) if spec["datatype"] == "BYTES" else values.nbytes
                key = f"/il-{spec['name']}"
                region = memory.create_shared_memory_region(spec["name"], key, size)
                regions.append((spec["name"], region))
                memory.set_shared_memory_region(region, [values])
                client.register_system_shared_memory(spec["name"], key, size)
                one.set_shared_memory(spec["name"], size)
            return [job.told(client.infer(inputs=inputs, request_id="0", **job.name))]
        finally:
            client.unregister_system_shared_memory()
            for _, region in regions:
                memory.destroy_shared_memory_region(region)


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
        "shared_memory": lambda: shared(job),
    }
    if job.http:
        shapes["http_aio"] = lambda: asyncio.run(asynchronous(job, http_aio, job.http, over_http))
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
