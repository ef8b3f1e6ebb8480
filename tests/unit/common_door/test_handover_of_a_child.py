"""A supervisor steers the port of its child: the child knows nothing of it."""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from services.common.handover import share_evenly, steer_to_successor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfd_getfd is Linux's")
CONNECTIONS = 40
CHILD = """
import socket, sys
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
s.bind(("127.0.0.1", 0)); s.listen(200)
print(s.getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def listening_child() -> Iterator[tuple[int, int]]:
    """A process that listens and never accepts: its pid and port."""
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        yield child.pid, int(child.stdout.readline())
        child.kill()


def taken(listener: socket.socket) -> int:
    """How many of some new connections to its port came to this listener."""
    clients = [socket.create_connection(listener.getsockname()) for _ in range(CONNECTIONS)]
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            count += 1
    for client in clients:
        client.close()
    return count


def test_a_childs_port_is_steered_and_shared_again() -> None:
    with listening_child() as (pid, port), socket.socket() as successor:
        successor.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        successor.bind(("127.0.0.1", port))
        successor.listen(200)
        successor.setblocking(False)
        assert taken(successor) < CONNECTIONS
        if not steer_to_successor(port, pid):
            pytest.skip("this machine does not let a process copy its child's descriptors")
        assert taken(successor) == CONNECTIONS
        share_evenly(port, pid)
        assert taken(successor) < CONNECTIONS


def test_a_process_that_is_gone_is_no_error() -> None:
    with listening_child() as (pid, port):
        pass
    assert steer_to_successor(port, pid) is False
