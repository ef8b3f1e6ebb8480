"""Hands a TCP port over to a second process without losing a connection.

Two processes that listen on one port with SO_REUSEPORT share its new connections. What waits in the accept queue of the
one that stops is reset by the kernel, and a client that reconnects at that moment sees its peer as down. So the process
that drains first steers every new connection to its successor, then accepts what it still has, then stops.
"""

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import structlog

_LOG: Final = structlog.get_logger(part="handover")
_SO_ATTACH_REUSEPORT_CBPF: Final = 51
_SO_DETACH_REUSEPORT_BPF: Final = 68
# The same number on every architecture.
_SYS_PIDFD_GETFD: Final = 438
# One classic BPF instruction, "return K": the index of the listener that gets the connection. Listeners are numbered in
# the order in which they came, so the process that leaves is 0 and its successor 1. Where there is no successor the
# index is out of range and the kernel chooses as ever.
_RETURN_K: Final = 0x06
_SUCCESSOR: Final = 1


def steer_to_successor(port: int, pid: int | None = None) -> bool:
    """Send new connections to `port` to the process that took it up after us, if there is one.

    With `pid` it is that child's port, not ours: a supervisor does it for an Envoy that cannot do it for itself.

    Holds for ports with one process and its successor; among several equals the index would say nothing. Returns whether
    the kernel took it. Where it cannot (not Linux, not permitted) the hand-over still works, with the
    few resets that clients retry.
    """
    steered = False
    for listener in _listeners(port, pid):
        with listener:
            try:
                _attach(listener)
                steered = True
            except OSError as error:
                _LOG.info("connections_not_steered", port=port, error=str(error))
    return steered


def share_evenly(port: int, pid: int | None = None) -> None:
    """Undo what a predecessor's hand-over left on `port`: it stays with the group of listeners, not with the process."""
    for listener in _listeners(port, pid):
        with listener, contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF, 0)


def _attach(listener: socket.socket) -> None:
    program = ctypes.create_string_buffer(struct.pack("HBBI", _RETURN_K, 0, 0, _SUCCESSOR))
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, struct.pack("HL", 1, ctypes.addressof(program)))


def _listeners(port: int, pid: int | None) -> Iterator[socket.socket]:
    """Yield the sockets of a process, this one by default, that listen on `port`; neither grpcio nor Envoy shows its own."""
    with contextlib.suppress(OSError), _copier(pid) as copy:
        for entry in list(Path(f"/proc/{pid or 'self'}/fd").iterdir()):
            # Only sockets: to close a copy of a file's descriptor would release this process's locks on the file, and
            # SQLite would believe that nobody else has the database open.
            found = _listener(int(entry.name), port, copy) if _is_socket(entry) else None
            if found is not None:
                yield found


@contextlib.contextmanager
def _copier(pid: int | None) -> Iterator[Callable[[int], int]]:
    """Give a function that copies a descriptor of the process into this one; a child's needs Linux 5.6."""
    if pid is None:
        yield os.dup
        return
    process = os.pidfd_open(pid)
    system = ctypes.CDLL(None, use_errno=True)
    try:
        yield lambda descriptor: _checked(system.syscall(_SYS_PIDFD_GETFD, process, descriptor, 0))
    finally:
        os.close(process)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return result


def _is_socket(entry: Path) -> bool:
    try:
        return entry.readlink().name.startswith("socket:")
    except OSError:
        return False  # closed meanwhile


def _listener(descriptor: int, port: int, copy: Callable[[int], int]) -> socket.socket | None:
    try:
        duplicate = copy(descriptor)
    except OSError:
        return None  # closed meanwhile
    try:
        candidate = socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)  # no socket
        return None
    if _listens_on(candidate, port):
        return candidate
    candidate.close()
    return None


def _listens_on(candidate: socket.socket, port: int) -> bool:
    if candidate.family not in (socket.AF_INET, socket.AF_INET6) or candidate.type != socket.SOCK_STREAM:
        return False
    with contextlib.suppress(OSError):
        listening = candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return bool(listening) and candidate.getsockname()[1] == port
    return False
