"""Entry of the model process; the front end starts it with a socket and its own process id."""

import argparse
import socket

from services.inference.worker.limits import ignore_signals, live_with_parent
from services.inference.worker.loop import WorkerLoop


def main() -> None:
    """Serve the socket until the front end closes it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("version", help="<model>/<version>, for those who look at the list of processes")
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--heartbeat", type=int, required=True)
    parser.add_argument("--shared", required=True)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    ignore_signals()
    live_with_parent(arguments.parent)
    with socket.socket(fileno=arguments.socket) as connection:
        shared = [int(number) for number in arguments.shared.split(",")]
        WorkerLoop(connection, arguments.heartbeat, shared).serve()


if __name__ == "__main__":
    main()
