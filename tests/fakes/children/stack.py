"""A stack of tiny children under the real supervisor; the state folder is the argument."""

import os
import sys
from pathlib import Path

from interlock_cli.errors import CommandFailed
from interlock_cli.settings import StackSettings
from interlock_cli.stack.run import run_plan
from interlock_cli.stack.spec import ServiceSpec, StackPlan
from interlock_cli.stack.state_folder import StateFolder, stack_lock

CHILD = Path(__file__).with_name("child.py")


def spec(name: str, kind: str) -> ServiceSpec:
    return ServiceSpec(name, (sys.executable, "-S", str(CHILD), kind), {}, f"{name}.example")


def main() -> int:
    kinds = dict(pair.split("=") for pair in os.environ.get("TEST_KINDS", "").split(",") if pair)
    specs = {name: spec(name, kinds.get(name, "serve")) for name in ("back", "middle", "front")}
    plan = StackPlan(tuple((one,) for one in specs.values()), ("front", "middle", "back"))
    settings = StackSettings(state_dir=Path(sys.argv[1]), restart_first_wait_s=0.01, crash_limit=3, stop_timeout_s=5)
    folder = StateFolder.at(settings.state_dir)
    folder.prepare()
    try:
        with stack_lock(folder, 0):
            return run_plan(settings, folder, plan, demo=False)
    except CommandFailed as error:
        sys.stdout.write(f"FAILED {error.message}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
