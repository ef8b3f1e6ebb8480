"""The launcher of the suite: `python -m tests.integration.door.launch_door`, the door by INTERLOCK_DOOR."""

from functools import partial

from services.common.edge.launcher import launch
from services.common.server import main
from services.common.several import run_several
from tests.integration.door.probe_service import HOT, ProbeSettings, build

if __name__ == "__main__":
    door_app = "tests.integration.door.probe_door:app"
    main("router", ProbeSettings, build, partial(launch, "router", door_app=door_app, hot=HOT), run_several)
