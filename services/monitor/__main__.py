"""Runs the monitor: `python -m services.monitor`."""

from services.common.server import main
from services.monitor.app import build
from services.monitor.settings import Settings

if __name__ == "__main__":
    main("monitor", Settings, build)
