"""Entry of the model process; the front end starts it with a socket and its own process id."""

import argparse
import socket

from services.inference.worker.limits import ignore_signals, live_with_parent, usual_scheduling
from services.inference.worker.loop import WorkerLoop
from services.inference.worker.shared_loop import SharedLoop


def main() -> None:
    """Serve the socket until the front end closes it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("version", help="<model>/<version>, for those who look at the list of processes; or shared")
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--heartbeat", type=int, required=True)
    parser.add_argument(
        "--shared", default="", help="segments for batches; a process of several versions gets them later"
    )
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    usual_scheduling()
    ignore_signals()
    live_with_parent(arguments.parent)
    with socket.socket(fileno=arguments.socket) as connection:
        if not arguments.shared:
            SharedLoop(connection, arguments.heartbeat).serve()
        shared = [int(number) for number in arguments.shared.split(",")]
        WorkerLoop(connection, arguments.heartbeat, shared).serve()


if __name__ == "__main__":
    main()
