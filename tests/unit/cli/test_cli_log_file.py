"""Logs do not grow without end, and following one survives the moment when it is put aside."""

from pathlib import Path

import pytest

from interlock_cli.stack.log_file import Follower, LogFile, tail


def test_a_full_file_is_put_aside_and_the_oldest_goes(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    log = LogFile(path, limit_bytes=20, file_count=3)
    for number in range(8):
        log.write(f"line {number}\n".encode())
    log.close()
    kept = {found.name: found.read_text("utf-8").split("\n")[:-1] for found in tmp_path.iterdir()}
    assert kept == {
        "x.log": ["line 6", "line 7"],
        "x.log.1": ["line 4", "line 5"],
        "x.log.2": ["line 2", "line 3"],
    }


def test_a_single_file_starts_over_when_it_is_full(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "x.log", limit_bytes=20, file_count=1)
    for number in range(5):
        log.write(f"line {number}\n".encode())
    log.close()
    assert [found.name for found in tmp_path.iterdir()] == ["x.log"]
    assert (tmp_path / "x.log").read_text("utf-8") == "line 4\n"


def test_a_log_is_continued_by_the_next_stack(tmp_path: Path) -> None:
    for word in ("first", "second"):
        log = LogFile(tmp_path / "x.log", limit_bytes=100, file_count=2)
        log.write(f"{word}\n".encode())
        log.close()
    assert tail(tmp_path / "x.log", 10) == ["first", "second"]


def test_the_tail_is_the_last_lines_and_nothing_for_a_log_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("".join(f"{number} {'x' * 50}\n" for number in range(5000)), "utf-8")
    assert [line.split()[0] for line in tail(path, 3)] == ["4997", "4998", "4999"]
    assert len(tail(path, 10_000)) == 5000
    assert tail(path, 0) == []
    assert tail(tmp_path / "none.log", 3) == []


@pytest.mark.parametrize("asked", [1, 3, 4, 6])
def test_the_tail_goes_back_into_files_that_are_put_aside(tmp_path: Path, asked: int) -> None:
    log = LogFile(tmp_path / "x.log", limit_bytes=20, file_count=4)
    for number in range(8):
        # As a pipe gives them: a piece, and so a file, may end within a line.
        log.write(b"lin")
        log.write(f"e {number}\n".encode())
    log.close()
    assert len(list(tmp_path.iterdir())) == 4
    assert tail(tmp_path / "x.log", asked) == [f"line {number}" for number in range(8)][-asked:]


def test_following_begins_at_the_end_and_crosses_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    log = LogFile(path, limit_bytes=30, file_count=2)
    log.write(b"before\n")
    follower = Follower(path)
    assert list(follower.lines()) == []
    log.write(b"one\nhalf of")
    assert list(follower.lines()) == ["one"]
    log.write(b" two\n")
    log.write(b"three: this one needs a new file\n")
    assert list(follower.lines()) == ["half of two", "three: this one needs a new file"]
    follower.close()
    log.close()
