"""`python -m services.router`: the router as a process, inside Envoy or behind it."""

from services.common.edge.launcher import launch
from services.common.server import main
from services.common.several import run_several
from services.router.app import HOT, build
from services.router.settings import Settings


def in_envoy(settings: Settings) -> int:
    """Serve the hot methods inside Envoy, which then is the edge; returns the exit code."""
    return launch("router", settings, "services.router.door:app", hot=HOT)


if __name__ == "__main__":
    main("router", Settings, build, in_envoy, run_several)
