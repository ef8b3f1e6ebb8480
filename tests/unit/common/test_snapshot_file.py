"""The crash-safe file."""

from pathlib import Path

import pytest

from services.common.snapshot_file import SnapshotFile


def _text(payload: bytes) -> str:
    if payload == b"unreadable":
        raise ValueError("unreadable")
    return payload.decode()


@pytest.fixture
def file(tmp_path: Path) -> SnapshotFile:
    return SnapshotFile(tmp_path / "deep" / "config.snapshot")


def test_the_newest_payload_comes_back(file: SnapshotFile) -> None:
    file.save(b"one")
    file.save(b"two")
    loaded = file.load(_text)
    assert loaded is not None
    assert loaded[0] == "two"


def test_nothing_saved_is_none(file: SnapshotFile) -> None:
    assert file.load(_text) is None


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 100])
def test_a_damaged_file_is_refused_for_the_one_before(file: SnapshotFile, damage: bytes) -> None:
    file.save(b"one")
    file.save(b"two")
    file.path.write_bytes(damage)
    loaded = file.load(_text)
    assert loaded is not None
    assert loaded[0] == "one"


def test_a_flipped_bit_is_noticed(file: SnapshotFile) -> None:
    file.save(b"one")
    content = bytearray(file.path.read_bytes())
    content[-1] ^= 1
    file.path.write_bytes(content)
    assert file.load(_text) is None


def test_content_that_cannot_be_read_is_refused_for_the_one_before(file: SnapshotFile) -> None:
    file.save(b"one")
    file.save(b"unreadable")
    loaded = file.load(_text)
    assert loaded is not None
    assert loaded[0] == "one"


def test_a_bad_file_does_not_push_out_the_good_one_before_it(file: SnapshotFile) -> None:
    file.save(b"one")
    file.save(b"two")
    file.path.write_bytes(b"damaged")
    file.save(b"three")
    file.path.write_bytes(b"damaged again")
    loaded = file.load(_text)
    assert loaded is not None
    assert loaded[0] == "one"


def test_saving_leaves_no_temporary_files(file: SnapshotFile) -> None:
    file.save(b"one")
    file.save(b"two")
    assert {path.name for path in file.path.parent.iterdir()} == {"config.snapshot", "config.snapshot.previous"}
