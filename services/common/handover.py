"""Hands a TCP port over to a second process without losing a connection.

Processes that listen on one port with SO_REUSEPORT share its new connections. What waits in the accept queue of one
that stops is reset by the kernel, and a client that reconnects at that moment sees its peer as down. So the process
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
# Classic BPF that returns the index of the listener which gets the connection. Listeners are numbered in the order in
# which they came, so those that leave are the first and their successors follow. When one closes, the last takes its
# number. Where there is no successor the index is out of range and the kernel chooses as ever.
_LOAD_RANDOM: Final = (0x20, 0xFFFFF000 + 56)
_MODULO: Final = 0x94
_ADD: Final = 0x04
_RETURN_SUM: Final = (0x16, 0)
_RETURN_CONSTANT: Final = 0x06
_LISTENING: Final = "0A"


def steer_to_successor(port: int, pid: int | None = None, *, leaving: int = 1, turn: int = 0) -> bool:
    """Send new connections to `port` to the processes that took it up after us, if there are any.

    With `pid` it is that child's port, not ours: a supervisor does it for an Envoy that cannot do it for itself.
    `leaving` processes go, those that came first, one after the other, each with its `turn` from 0: its clients find a
    successor of their own. At the last turn it is one that keeps its number until all that leave have closed, so that no
    connection is given to one that closes. More successors than predecessors share unevenly until one is started anew.

    Returns whether the kernel took it. Where it cannot (not Linux, not permitted) the hand-over still works, with the
    few resets that clients retry.
    """
    steered = False
    program = _program(leaving, _listening_count(port) - leaving, turn)
    for listener in _listeners(port, pid):
        with listener:
            try:
                _attach(listener, program)
                steered = True
            except OSError as error:
                _LOG.info("connections_not_steered", port=port, error=str(error))
    return steered


def share_evenly(port: int, pid: int | None = None) -> None:
    """Undo what a predecessor's hand-over left on `port`: it stays with the group of listeners, not with the process."""
    for listener in _listeners(port, pid):
        with listener, contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF, 0)


def _program(leaving: int, successors: int, turn: int) -> list[tuple[int, int]]:
    if successors > leaving:
        # A constant would stay in force for good, with a number that is in range.
        return [_LOAD_RANDOM, (_MODULO, successors - leaving + 1), (_ADD, leaving), _RETURN_SUM]
    last = max(successors - 1, 0)
    return [(_RETURN_CONSTANT, leaving + (last - turn) % (last + 1))]


def _listening_count(port: int) -> int:
    """Return how many sockets of this host listen on `port`, whoever's they are."""
    count = 0
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/self/net/{table}").read_text("ascii").splitlines()[1:]
            count += sum(_is_listener(line.split(), port) for line in lines)
    return count


def _is_listener(fields: list[str], port: int) -> bool:
    return fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port


def _attach(listener: socket.socket, program: list[tuple[int, int]]) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", each, 0, 0, value) for each, value in program))
    packed = struct.pack("HL", len(program), ctypes.addressof(code))
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, packed)


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
