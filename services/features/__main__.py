"""Runs the features service: `python -m services.features`."""

from services.common.server import main
from services.features.app import build
from services.features.settings import Settings

if __name__ == "__main__":
    main("features", Settings, build)
