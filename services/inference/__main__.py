"""`python -m services.inference`: one inference replica, as a grpcio server or inside Envoys of its own."""

from services.common.edge.launcher import launch
from services.common.server import main
from services.inference.app import HOT, SERVICE, Settings, build


def in_envoy(settings: Settings) -> int:
    """Serve ModelInfer inside Envoy, for callers that come here directly; returns the exit code."""
    return launch(SERVICE, settings, "services.inference.door:app", hot=HOT, front_app="services.inference.door:front")


if __name__ == "__main__":
    main(SERVICE, Settings, build, in_envoy)
