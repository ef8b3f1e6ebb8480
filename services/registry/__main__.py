"""Runs the registry as this process."""

from services.common.server import main
from services.registry.app import build
from services.registry.settings import RegistrySettings

if __name__ == "__main__":
    main("registry", RegistrySettings, build)
