"""`python -m services.common.edge`: a plain edge in front of a router with door = grpcio."""

import sys

from services.common.edge.launcher import launch_plain
from services.common.edge.settings import EdgeSettings
from services.common.logs import configure_logs
from services.common.server import StartFailed
from services.common.settings import InvalidSettings, read_settings


def main() -> int:
    """Run the edge; returns the exit code."""
    try:
        settings = read_settings(EdgeSettings)
        configure_logs("edge", form=settings.log_format, level=settings.log_level)
        return launch_plain(settings)
    except (InvalidSettings, StartFailed, OSError) as error:
        sys.stderr.write(f"interlock edge cannot start: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
