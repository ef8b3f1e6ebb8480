"""The launcher of the suite: `python -m tests.integration.door.launch_door envoy|grpcio`.

`envoy`: the service inside Envoy. `grpcio`: the service on its TCP port, complete by itself; an edge runs beside it.
"""

import asyncio
import os
import signal
import sys

from services.common.edge.launcher import launch
from services.common.edge.settings import EdgeSettings
from services.common.notify import notify
from services.common.settings import read_notify_socket
from tests.integration.door.probe_service import HOT, open_service


async def serve_grpcio(settings: EdgeSettings) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with open_service([settings.edge_router_address]):
        notify(read_notify_socket(), "READY=1")
        await stop.wait()


if __name__ == "__main__":
    if sys.argv[1] == "grpcio":
        asyncio.run(serve_grpcio(EdgeSettings()))
    else:
        sys.exit(launch("router", EdgeSettings(), "tests.integration.door.probe_door:app", hot=HOT))
