"""`python -m services.inference`: one inference process, as a grpcio server or inside an Envoy of its own."""

from services.common.edge.launcher import launch
from services.common.edge.settings import EdgeSettings
from services.common.server import main
from services.common.settings import read_settings
from services.inference.app import HOT, SERVICE, Settings, build


def in_envoy(_settings: Settings) -> int:
    """Serve ModelInfer inside Envoy, for callers that come here directly; returns the exit code."""
    return launch(SERVICE, read_settings(EdgeSettings), "services.inference.door:app", hot=HOT)


if __name__ == "__main__":
    main(SERVICE, Settings, build, in_envoy)
