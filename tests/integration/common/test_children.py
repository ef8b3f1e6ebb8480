"""Children of a process whose channels are busy become the programs that they are meant to be."""

import asyncio
import threading
from collections import Counter
from typing import Any

import grpc
import pytest
import uvloop

CHILDREN = 200


class Echo(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        async def answer(request: bytes, context: object) -> bytes:
            return request

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.mark.timeout(120)
def test_no_child_of_a_busy_process_ends_before_it_began() -> None:
    assert uvloop.run(_ends_of_children()) == {0: CHILDREN}


async def _ends_of_children() -> Counter[int]:
    """The loop that services run on: asyncio's own starts children in another way."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    over = threading.Event()

    def ask() -> None:
        with grpc.insecure_channel(address) as channel:
            call: Any = channel.unary_unary("/echo/Echo")
            while not over.is_set():
                call(b"")

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    ends: Counter[int] = Counter()
    try:
        for _ in range(CHILDREN):
            process = await asyncio.create_subprocess_exec("true")
            async with asyncio.timeout(30):
                ends[await process.wait()] += 1
    finally:
        over.set()
        for thread in asking:
            await asyncio.to_thread(thread.join)
        await server.stop(None)
    return ends
