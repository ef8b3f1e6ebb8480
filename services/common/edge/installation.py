"""What of the edge is installed here; apart from the launcher, so that a command which only asks starts fast."""

from importlib.util import find_spec
from pathlib import Path

from services.common.edge.settings import EdgeSettings


def descriptor_path(settings: EdgeSettings) -> Path:
    """Return where the descriptor set of the contract is: beside the generated stubs, unless a setting says else."""
    if settings.edge_descriptor_path is not None:
        return settings.edge_descriptor_path.absolute()
    spec = find_spec("interlock")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        for path in (Path(folder).parent / "interlock.binpb", Path(folder) / "interlock.binpb"):
            if path.is_file():
                return path.absolute()
    raise FileNotFoundError("interlock.binpb is not beside the stubs: run `make gen`")


def shared_libpython() -> Path | None:
    """Return the shared library of this interpreter, None when it was built without one."""
    if find_spec("find_libpython") is None:
        return None
    from find_libpython import find_libpython  # noqa: PLC0415 - comes with the optional pyvoy

    found = find_libpython()
    return Path(found) if found and Path(found).is_file() else None
