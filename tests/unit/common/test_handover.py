"""Steering of new connections between listeners of one port, in the real kernel."""

import contextlib
import fcntl
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.common.handover import share_evenly, steer_to_successor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="SO_ATTACH_REUSEPORT_CBPF is Linux's")
CONNECTIONS = 40


@pytest.fixture
def listen() -> Iterator[Callable[[int], socket.socket]]:
    with contextlib.ExitStack() as stack:

        def open_listener(port: int) -> socket.socket:
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen(2 * CONNECTIONS)
            listener.setblocking(False)
            return listener

        yield open_listener


def _shares(*listeners: socket.socket) -> list[int]:
    address = listeners[0].getsockname()
    clients = [socket.create_connection(address) for _ in range(CONNECTIONS)]
    shares = [_accepted(listener) for listener in listeners]
    for client in clients:
        client.close()
    return shares


def _accepted(listener: socket.socket) -> int:
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            count += 1
    return count


def test_a_successor_gets_every_new_connection(listen: Callable[[int], socket.socket]) -> None:
    old = listen(0)
    new = listen(old.getsockname()[1])
    before = _shares(old, new)
    assert steer_to_successor(old.getsockname()[1])
    assert min(before) > 0
    assert _shares(old, new) == [0, CONNECTIONS]
    old.close()
    assert _shares(new) == [CONNECTIONS]


@pytest.mark.parametrize("closes_first", [0, 1])
def test_each_of_several_has_a_successor_of_its_own(listen: Callable[[int], socket.socket], closes_first: int) -> None:
    old = [listen(0)]
    port = old[0].getsockname()[1]
    old.append(listen(port))
    new = [listen(port), listen(port)]
    assert steer_to_successor(port, leaving=2, turn=0)
    assert _shares(*old, *new) == [0, 0, 0, CONNECTIONS]
    assert steer_to_successor(port, leaving=2, turn=1)
    assert _shares(*old, *new) == [0, 0, CONNECTIONS, 0]
    old.pop(closes_first).close()
    assert _shares(*old, *new) == [0, CONNECTIONS, 0]
    old.pop().close()
    assert min(_shares(*new)) > 0


def test_more_successors_share_every_new_connection(listen: Callable[[int], socket.socket]) -> None:
    old = listen(0)
    port = old.getsockname()[1]
    new = [listen(port) for _ in range(3)]
    assert steer_to_successor(port)
    shares = _shares(old, *new)
    assert shares[0] == 0
    assert min(shares[1:]) > 0
    old.close()
    assert min(_shares(*new)) > 0


def test_without_a_successor_nothing_changes(listen: Callable[[int], socket.socket]) -> None:
    only = listen(0)
    assert steer_to_successor(only.getsockname()[1])
    assert _shares(only) == [CONNECTIONS]


def test_what_a_hand_over_leaves_can_be_undone(listen: Callable[[int], socket.socket]) -> None:
    first = listen(0)
    second = listen(first.getsockname()[1])
    steer_to_successor(first.getsockname()[1])
    share_evenly(first.getsockname()[1])
    assert min(_shares(first, second)) > 0


def test_a_port_of_somebody_else_is_left_alone() -> None:
    assert not steer_to_successor(1)


def test_locks_on_files_survive(listen: Callable[[int], socket.socket], tmp_path: Path) -> None:
    held = (tmp_path / "database").open("w")
    with held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        steer_to_successor(listen(0).getsockname()[1])
        # Locks of one process never conflict with each other: another one has to ask.
        ask = f"import fcntl; fcntl.lockf(open({held.name!r}, 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        asked = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, timeout=30, check=False)
    assert "BlockingIOError" in asked.stderr
