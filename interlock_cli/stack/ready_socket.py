"""Hears from a child how far it is, in systemd's sd_notify protocol."""

import asyncio
import socket
from pathlib import Path
from typing import Final

_MESSAGE_BYTES: Final = 4096


class ReadySocket:
    """A datagram socket for one child; its path goes to the child as NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ready = asyncio.Event()
        """Set once the child has said that it serves."""
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(str(path))
        asyncio.get_running_loop().add_reader(self._socket, self._hear)

    def close(self) -> None:
        """Stop listening and remove the socket."""
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self.path.unlink(missing_ok=True)

    def _hear(self) -> None:
        try:
            message = self._socket.recv(_MESSAGE_BYTES)
        except BlockingIOError:
            return
        if b"READY=1" in message.split(b"\n"):
            self.ready.set()
