"""Shared memory of clients: what may be registered, and that no client can make the process read or write elsewhere, or fall."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.common.chain import ByteBudget
from services.common.errors import ServiceError
from services.common.shared_regions import REGIONS_LIMIT, SharedRegions
from services.common.shared_tensors import SharedTensors
from tests.fakes.shared_object import FOLDER, SharedObject, shared_object

LIMIT_BYTES = 10_000


@dataclass
class Output:
    """A tensor as the services have them."""

    name: str
    data: bytes


@pytest.fixture
def thing() -> Iterator[SharedObject]:
    with shared_object(1000) as found:
        yield found


@pytest.fixture
def regions() -> Iterator[SharedRegions]:
    found = SharedRegions(LIMIT_BYTES, 500, ByteBudget(800))
    yield found
    found.close()
    assert not any("/il-test-" in target for target in open_files())


def open_files() -> list[str]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(link.readlink()))
    return found


def place(region: str, size: object, offset: object = 0) -> dict[str, object]:
    return {"shared_memory_region": region, "shared_memory_byte_size": size, "shared_memory_offset": offset}


def reason_of(error: pytest.ExceptionInfo[ServiceError]) -> str:
    return error.value.reason


@pytest.mark.parametrize("key", ["", "/", "//x", "/a/b", "../etc/passwd", "/..", ".", "a b", "a\0b", "ä", "x" * 256])
def test_a_key_that_can_be_no_object_is_refused(regions: SharedRegions, key: str) -> None:
    with pytest.raises(ServiceError, match="key: want the name of a POSIX") as refused:
        regions.register("r", key, 0, 10)
    assert reason_of(refused) == "INVALID_FIELD"


def test_only_a_shared_memory_object_is_opened(regions: SharedRegions, thing: SharedObject, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(100))
    for name, make in (
        ("link", lambda path: path.symlink_to(secret)),
        ("pipe", os.mkfifo),
        ("folder", os.mkdir),
        ("nothing", lambda _: None),
    ):
        path = FOLDER / f"{thing.name}-{name}"
        make(path)
        try:
            with pytest.raises(ServiceError, match="shared memory object") as refused:
                regions.register("r", path.name, 0, 10)
            assert reason_of(refused) == "SHARED_MEMORY_UNUSABLE"
        finally:
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("offset", "size", "reason"),
    [(0, 1001, "SHARED_MEMORY_UNUSABLE"), (2**63, 1, "SHARED_MEMORY_UNUSABLE"), (2**64 - 1, 2**64 - 1, "SHARED_MEMORY_UNUSABLE"),
     (0, 0, "INVALID_FIELD"), (-1, 10, "INVALID_FIELD")],
)  # fmt: skip
def test_a_region_lies_inside_its_object(
    regions: SharedRegions, thing: SharedObject, offset: int, size: int, reason: str
) -> None:
    with pytest.raises(ServiceError) as refused:
        regions.register("r", thing.key, offset, size)
    assert reason_of(refused) == reason
    assert not regions.listed("")


def test_a_name_is_taken_once_and_the_same_region_again_is_no_mistake(
    regions: SharedRegions, thing: SharedObject
) -> None:
    regions.register("r", thing.key, 8, 100)
    regions.register("r", thing.key.removeprefix("/"), 8, 100)
    assert [(region.name, region.key, region.offset, region.size_bytes) for region in regions.listed("")] == [
        ("r", thing.key, 8, 100)
    ]
    thing.path.unlink()
    thing.path.write_bytes(bytes(1000))
    for offset in (8, 16):
        with pytest.raises(ServiceError, match="unregister it first") as refused:
            regions.register("r", thing.key, offset, 100)
        assert reason_of(refused) == "SHARED_MEMORY_REGION_EXISTS"
    regions.unregister("r")
    regions.unregister("r")
    regions.register("r", thing.key, 16, 100)


def test_number_and_total_are_bounded(regions: SharedRegions, thing: SharedObject) -> None:
    for at in range(LIMIT_BYTES // 1000):
        regions.register(str(at), thing.key, 0, 1000)
    with pytest.raises(ServiceError, match="unregister what is not used") as refused:
        regions.register("more", thing.key, 0, 1)
    assert reason_of(refused) == "SHARED_MEMORY_LIMIT_EXCEEDED"
    regions.unregister("")
    for at in range(REGIONS_LIMIT):
        regions.register(str(at), thing.key, 0, 1)
    with pytest.raises(ServiceError, match="unregister what is not used"):
        regions.register("more", thing.key, 0, 1)


def test_what_is_read_is_a_part_of_the_region(regions: SharedRegions, thing: SharedObject) -> None:
    thing.put(b"before" + b"inside" + b"behind")
    regions.register("r", thing.key, 6, 6)
    with SharedTensors(regions) as shared:
        assert shared.read("x", place("r", 4, 2)) == b"side"
        assert shared.read("x", {}) is None
        for size, offset in ((7, 0), (6, 1), (2**63, 2**63), (0, 0), (True, 0), (None, 0), (1, -1), ("1", 0), (1, 0.5)):
            with pytest.raises(ServiceError) as refused:
                shared.read("inputs.x", place("r", size, offset))
            assert reason_of(refused) == "INVALID_FIELD"
            assert "inputs.x.parameters.shared_memory_" in str(refused.value)


def test_an_object_that_is_cut_behind_our_back_is_an_error_and_does_not_grow(
    regions: SharedRegions, thing: SharedObject
) -> None:
    """With a mapping each of these would end the process."""
    regions.register("r", thing.key, 100, 200)
    with SharedTensors(regions) as shared:
        shared.expect("y", "outputs.y", place("r", 100))
        thing.cut(150)
        for use in (
            lambda: shared.read("inputs.x", place("r", 200)),
            lambda: shared.expect("z", "outputs.z", place("r", 100)),
            lambda: shared.write([Output("y", bytes(100))]),
        ):
            with pytest.raises(ServiceError, match=r"got 50$") as refused:
                use()
            assert reason_of(refused) == "SHARED_MEMORY_UNUSABLE"
    assert thing.path.stat().st_size == 150


def test_outputs_are_written_all_or_none(regions: SharedRegions, thing: SharedObject) -> None:
    regions.register("r", thing.key, 10, 500)
    with SharedTensors(regions) as shared:
        assert shared.expect("a", "outputs.a", place("r", 4, 10))
        assert shared.expect("b", "outputs.b", place("r", 4, 20))
        assert not shared.expect("c", "outputs.c", {})
        with pytest.raises(
            ServiceError, match=r"outputs\.b\.parameters\.shared_memory_byte_size: want 5 or more, got 4"
        ):
            shared.write([Output("a", b"1234"), Output("b", b"12345")])
        assert thing.get(0, 1000) == bytes(1000)
        written = shared.write([Output("a", b"123"), Output("b", b"4567"), Output("c", b"89")])
    assert written == {"a": place("r", 3, 10), "b": place("r", 4, 20)}
    assert thing.get(20, 14) == b"123" + bytes(7) + b"4567"


def test_a_region_that_was_let_go_meanwhile_is_not_found(regions: SharedRegions, thing: SharedObject) -> None:
    """Its descriptor's number is another file's by then."""
    regions.register("r", thing.key, 0, 100)
    with SharedTensors(regions) as shared, shared_object(1000) as other:
        shared.expect("y", "outputs.y", place("r", 100))
        regions.unregister("")
        regions.register("q", other.key, 0, 100)
        with pytest.raises(ServiceError) as refused:
            shared.write([Output("y", b"text")])
        assert reason_of(refused) == "SHARED_MEMORY_REGION_NOT_FOUND"
        assert other.get(0, 1000) == bytes(1000)


def test_what_requests_read_counts_while_they_run(regions: SharedRegions, thing: SharedObject) -> None:
    regions.register("r", thing.key, 0, 1000)
    with SharedTensors(regions) as one, SharedTensors(regions) as other:
        one.read("x", place("r", 500))
        with pytest.raises(ServiceError, match="have 501 bytes, the limit is 500") as refused:
            one.read("y", place("r", 1))
        assert reason_of(refused) == "MESSAGE_TOO_LARGE"
        with pytest.raises(ServiceError) as refused:
            other.read("x", place("r", 301))
        assert reason_of(refused) == "BYTES_IN_FLIGHT_EXCEEDED"
        assert regions.budget.used_bytes == 500
    assert regions.budget.used_bytes == 0


def test_when_off_the_setting_is_named() -> None:
    regions = SharedRegions(0, 500, ByteBudget(800))
    with SharedTensors(regions) as shared:
        for use in (
            lambda: regions.register("r", "/x", 0, 1),
            lambda: regions.unregister(""),
            lambda: regions.listed(""),
            lambda: regions.listed("r"),
            lambda: shared.read("x", place("r", 1)),
            lambda: shared.expect("y", "y", place("r", 1)),
        ):
            with pytest.raises(ServiceError, match="INTERLOCK_SYSTEM_SHARED_MEMORY_BYTES"):
                use()
