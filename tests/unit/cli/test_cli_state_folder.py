"""One stack per folder, and a path that Unix sockets can live with."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from interlock_cli.errors import CommandFailed
from interlock_cli.stack.state_folder import StateFolder, lock_holder, stack_lock


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for the sockets in it; pytest's own may be too long."""
    path = Path(tempfile.mkdtemp(prefix="il-"))
    yield path
    shutil.rmtree(path)


def test_the_folder_is_this_users_own(short_path: Path) -> None:
    folder = StateFolder.at(short_path / "state")
    folder.prepare()
    assert [oct(path.stat().st_mode & 0o777) for path in (folder.path, folder.run, folder.logs)] == ["0o700"] * 3


def test_a_second_stack_on_the_folder_is_refused_and_told_who_has_it(short_path: Path) -> None:
    folder = StateFolder.at(short_path)
    folder.prepare()
    assert lock_holder(folder) is None
    with stack_lock(folder, port_offset=0):
        assert lock_holder(folder) == os.getpid()
        with (
            pytest.raises(CommandFailed, match=rf"already runs on {short_path} \(pid {os.getpid()}\)") as caught,
            stack_lock(folder, port_offset=100),
        ):
            pass
        assert "INTERLOCK_STATE_DIR" in caught.value.hints[1]
    assert lock_holder(folder) is None
    with stack_lock(folder, port_offset=0):
        assert lock_holder(folder) == os.getpid()


def test_a_path_too_long_for_sockets_is_refused_with_the_number_of_bytes(tmp_path: Path) -> None:
    folder = StateFolder.at(tmp_path / ("x" * 100))
    assert folder.too_long_by_bytes() > 0
    with pytest.raises(CommandFailed, match=f"is {folder.too_long_by_bytes()} bytes too long for Unix sockets"):
        folder.prepare()
    assert not folder.path.exists()


def test_a_folder_that_cannot_be_made_is_named(short_path: Path) -> None:
    (short_path / "file").write_text("", "utf-8")
    folder = StateFolder.at(short_path / "file" / "s")
    with pytest.raises(CommandFailed, match=f"the state folder {folder.path} cannot be used: Not a directory"):
        folder.prepare()
