"""`python -m services.router`: the launcher of the router, behind the door that the settings choose."""

from functools import partial

from services.common.edge.launcher import launch
from services.common.server import main
from services.router.app import HOT, ROUTER_NAME, build
from services.router.settings import Settings

if __name__ == "__main__":
    main(ROUTER_NAME, Settings, build, partial(launch, ROUTER_NAME, door_app="services.router.door:app", hot=HOT))
