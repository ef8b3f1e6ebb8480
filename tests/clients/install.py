"""Installs the foreign clients that the end-to-end tests run: `python tests/clients/install.py`.

They live apart from the suite, in `.venv-clients`, because they need other versions of the same libraries: `tritonclient`, the
KServe SDK, MLPerf LoadGen and Node from PyPI, the Node client's modules from npm, and its stubs, made from our protos. Each step is done again only
when what it is made from has changed.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-clients"
PYTHON = ENVIRONMENT / "bin" / "python"
NODE = ENVIRONMENT / "bin" / "node"
REQUIREMENTS = ROOT / "tests" / "clients" / "requirements.txt"
NODE_CLIENT = ROOT / "tests" / "clients" / "node"
PROTOS = ROOT / "protos"
# The client of a user calls the router; details of errors are Google's.
_STUBS_FROM = ("interlock/router/v1", "google/rpc")


@dataclass(frozen=True)
class Step:
    """One part of the installation, done again when its output is gone or its inputs are not those of its stamp."""

    name: str
    output: Path
    inputs: Callable[[], Iterable[Path]]
    run: Callable[[], None]
    salt: str = ""

    @property
    def stamp(self) -> Path:
        return ENVIRONMENT / f"{self.name}.stamp"

    def digest(self) -> str:
        found = hashlib.sha256(self.salt.encode())
        for path in sorted(self.inputs()):
            found.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
        return found.hexdigest()

    def is_fresh(self) -> bool:
        return self.output.exists() and self.stamp.exists() and self.stamp.read_text() == self.digest()

    def install(self) -> None:
        sys.stdout.write(f"clients: {self.name}\n")
        sys.stdout.flush()
        self.stamp.unlink(missing_ok=True)
        self.run()
        self.stamp.write_text(self.digest())


def install() -> None:
    """Do what is stale, in order; a step that ran makes those after it stale too, for they build on it."""
    stale = False
    for step in STEPS:
        stale = stale or not step.is_fresh()
        if stale:
            step.install()


def is_installed() -> bool:
    """Whether nothing is stale."""
    return all(step.is_fresh() for step in STEPS)


def _make_environment() -> None:
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(ENVIRONMENT)])
    # Compiling all of it costs more than the tests save: they import a small part.
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    _run([*pip, "-r", str(REQUIREMENTS)])


def _install_modules() -> None:
    _run([str(ENVIRONMENT / "bin" / "npm"), "ci", "--loglevel=error", "--no-audit", "--no-fund"], cwd=NODE_CLIENT)


def _make_stubs() -> None:
    buf = Path(sys.executable).with_name("buf")
    paths = [option for part in _STUBS_FROM for option in ("--path", str(PROTOS / part))]
    _run([str(buf), "generate", str(ROOT), "--template", "buf.gen.yaml", *paths], cwd=NODE_CLIENT)


def _run(command: list[str], cwd: Path = ROOT) -> None:
    path = f"{ENVIRONMENT / 'bin'}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, cwd=cwd, check=True, env={**os.environ, "PATH": path})


STEPS = (
    Step("environment", PYTHON, lambda: [REQUIREMENTS], _make_environment, salt=sys.version),
    Step("modules", NODE_CLIENT / "node_modules", lambda: NODE_CLIENT.glob("package*.json"), _install_modules),
    Step("stubs", NODE_CLIENT / "gen", lambda: [NODE_CLIENT / "buf.gen.yaml", *PROTOS.rglob("*.proto")], _make_stubs),
)


if __name__ == "__main__":
    try:
        install()
    except subprocess.CalledProcessError as error:
        sys.exit(f"clients: {Path(error.cmd[0]).name} failed with status {error.returncode}; what it said stands above")
