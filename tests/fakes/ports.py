"""Port offsets that nobody uses, so that tests can run beside a stack and beside each other."""

import random
import socket
from collections.abc import Iterable
from typing import Final

from services.common.settings import METRICS_PORT_STEP, PORTS

# Above every port of a stack that runs with a small offset, below the ephemeral range that clients draw from.
_OFFSETS: Final = range(2_000, 22_000, 10)


def free_offset() -> int:
    """Return an offset at which every port of a stack is free."""
    for offset in random.sample(_OFFSETS, k=len(_OFFSETS)):
        if all(map(_is_free, _stack_ports(offset))):
            return offset
    raise RuntimeError("no port offset is free")


def _stack_ports(offset: int) -> Iterable[int]:
    for port in PORTS.values():
        yield port + offset
        yield port + offset + METRICS_PORT_STEP


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
