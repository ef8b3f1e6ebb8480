"""Tells the supervisor how far this process is, in systemd's sd_notify protocol."""

import socket
from typing import Final

import structlog

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"


def notify(address: str, *states: str) -> None:
    """Send `states` to the datagram socket at `address`; does nothing when it is empty.

    A supervisor that is gone is logged and otherwise ignored: the service serves on.
    """
    if not address:
        return
    # systemd writes an abstract socket's leading NUL as "@".
    target = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(target)
            sender.sendall("\n".join(states).encode())
    except OSError as error:
        structlog.get_logger(part="notify").warning("supervisor_unreachable", error=str(error))
