"""Port offsets that nobody uses, so that tests can run beside a stack and beside each other."""

import random
import socket
from collections import deque
from collections.abc import Iterable
from typing import Final

from services.common.settings import METRICS_PORT_STEP, PORTS

# Above every port of a stack that runs with a small offset, below the ephemeral range that clients draw from. Every
# other hundred only: the ports of metrics lie in those between.
_OFFSETS: Final = [offset for offset in range(2_000, 22_000, 10) if offset // METRICS_PORT_STEP % 2 == 0]

# What this process was given last. Nothing listens on an offset before its service has started, and by then another
# process' test may have found it free as well: held by name, it is not. Names of this kind end with their process.
_HELD: Final[deque[socket.socket]] = deque(maxlen=100)


def free_offset() -> int:
    """Return an offset at which every port of a stack is free, and that nobody else is given meanwhile."""
    for offset in random.sample(_OFFSETS, k=len(_OFFSETS)):
        if _hold(offset) and all(map(_is_free, _stack_ports(offset))):
            return offset
    raise RuntimeError("no port offset is free")


def _hold(offset: int) -> bool:
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0interlock-test-ports-{offset}")
    except OSError:
        claim.close()
        return False
    if len(_HELD) == _HELD.maxlen:
        _HELD.popleft().close()
    _HELD.append(claim)
    return True


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
