"""Makes the kernel kill a child when its supervisor is gone, however that ended."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent() -> Callable[[], None] | None:
    """Return what a new child must run before it becomes the program; None where the kernel has no such thing.

    The signal is tied to the thread that forks, so children are started from the main thread.
    """
    if sys.platform != "linux":
        return None
    # Looked up here: after a fork nothing may be loaded any more.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def bind() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have died before the line above.
        if os.getppid() != parent:
            os._exit(1)

    return bind
