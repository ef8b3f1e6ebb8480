"""Whether a stack could start here."""

import os
import tempfile

from interlock_cli.doctor.finding import Finding
from interlock_cli.errors import CommandFailed
from interlock_cli.settings import StackSettings
from interlock_cli.stack.plan import choose_doors, make_plan
from interlock_cli.stack.port_check import taken_ports
from interlock_cli.stack.state_folder import StateFolder, lock_holder


def state_folder_usable(folder: StateFolder) -> Finding:
    """Whether the state folder, or the one that it would be made in, can be written to."""
    place = next(path for path in (folder.path, *folder.path.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            good = True
    except OSError:
        good = False
    detail = f"{folder.path}{'' if good else ' cannot be written to'}"
    return Finding("state folder", good, detail, "set INTERLOCK_STATE_DIR to a folder that you may write to")


def socket_paths_fit(folder: StateFolder) -> Finding:
    """Whether the path leaves room for the names of Unix sockets."""
    excess = folder.too_long_by_bytes()
    length = len(os.fsencode(folder.path))
    detail = f"the folder's path has {length} bytes" + (f", {excess} too many" if excess > 0 else "")
    return Finding("socket paths", excess <= 0, detail, "set INTERLOCK_STATE_DIR to a shorter path")


def ports_free(settings: StackSettings, folder: StateFolder) -> Finding:
    """Whether every port is free, or held by the stack of this very folder."""
    name = "ports"
    holder = lock_holder(folder)
    if holder is not None:
        return Finding(name, good=True, detail=f"a stack runs on this folder (pid {holder}) and holds them")
    try:
        plan = make_plan(settings, folder, choose_doors(settings))
    except CommandFailed as error:
        return Finding(name, good=False, detail=error.message, fix="; ".join(error.hints))
    taken = taken_ports(settings.bind_host, plan.ports)
    numbers = sorted(port.number for _, port in plan.ports)
    return Finding(
        name,
        not taken,
        "; ".join(map(str, taken)) or f"free: {', '.join(map(str, numbers))}",
        "stop the holder, or move the stack: INTERLOCK_PORT_OFFSET=100 adds 100 to each port",
    )
