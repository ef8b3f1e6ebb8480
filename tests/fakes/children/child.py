"""A service's process in miniature: what it does is its first argument.

serve        says READY, ends with 0 on SIGTERM
crash        writes a line and ends with 3 before it is ready
die          says READY and ends with 4 at once
stubborn     says READY and ignores SIGTERM
mute         never says READY
parent       says READY and has a child of its own that outlives a crash of it
"""

import os
import signal
import socket
import subprocess
import sys


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def say_ready() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(os.environ["NOTIFY_SOCKET"])
        sender.send(b"READY=1")


def main(kind: str) -> int:
    say(f"{kind} runs as {os.getpid()} replace={os.environ.get('INTERLOCK_REPLACE', '')}")
    if kind == "crash":
        sys.stderr.write("no configuration found\n")
        return 3
    signal.signal(signal.SIGTERM, signal.SIG_IGN if kind == "stubborn" else lambda *_: sys.exit(0))
    if kind == "parent":
        say(f"grandchild {subprocess.Popen(['sleep', '600']).pid}")
    if kind != "mute":
        say_ready()
    if kind == "die":
        return 4
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
