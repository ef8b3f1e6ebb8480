"""A supervised stack of tiny real processes, in a folder short enough for Unix sockets."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from interlock_cli.stack.spec import ServiceSpec
from interlock_cli.stack.state_folder import StateFolder

CHILD = Path(__file__).parents[2] / "fakes" / "children" / "child.py"


@pytest.fixture
def folder() -> Iterator[StateFolder]:
    path = Path(tempfile.mkdtemp(prefix="il-"))
    made = StateFolder.at(path)
    made.prepare()
    yield made
    shutil.rmtree(path, ignore_errors=True)


def child_spec(kind: str, name: str = "thing", *, shares_port: bool = True) -> ServiceSpec:
    command = (sys.executable, "-S", str(CHILD), kind)
    return ServiceSpec(name, command, {}, "nowhere", shares_port=shares_port)
