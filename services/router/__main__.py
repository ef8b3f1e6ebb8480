"""`python -m services.router`: the router as a process."""

from services.common.server import main
from services.router.app import build
from services.router.settings import Settings

if __name__ == "__main__":
    main("router", Settings, build)
