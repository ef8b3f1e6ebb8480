"""The echo service as a process of its own, under the name and the ports of the monitor."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from google.protobuf.wrappers_pb2 import StringValue

from services.common.call import Binding, Call
from services.common.server import Runtime, main
from services.common.settings import CommonSettings
from tests.integration.common.echo_contract import EchoServicer, echo_binding


class EchoSettings(CommonSettings):
    """The common settings and how long the start takes."""

    echo_start_s: float = 0.0
    """Seconds that the start takes."""


class SlowEcho(EchoServicer):
    """Takes as many milliseconds as the request says after "wait "."""

    async def Echo(self, request: StringValue, call: Call) -> StringValue:
        if request.value.startswith("wait "):
            await asyncio.sleep(float(request.value.removeprefix("wait ")) / 1000)
        return StringValue(value=str(os.getpid()))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@asynccontextmanager
async def build(settings: EchoSettings, runtime: Runtime[EchoSettings]) -> AsyncIterator[Sequence[Binding]]:
    await asyncio.sleep(settings.echo_start_s)
    runtime.on_drain(lambda: _say("drain callback"))
    yield [echo_binding(SlowEcho())]
    _say("build closed")


if __name__ == "__main__":
    main("monitor", EchoSettings, build)
