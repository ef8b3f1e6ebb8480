"""Foreign columns as ours: times in the zone given, over changes of the clock; values of their types or none."""

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from services.features.adapters.arrow_values import WrongColumn, keys_of, times_of, values_of
from services.features.domain.definitions import FeatureType

NEW_YORK = "America/New_York"


def us(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1_000_000)


def naive(*texts: str, unit: str = "us") -> pa.Array:
    return pa.array([datetime.fromisoformat(text) for text in texts], pa.timestamp(unit))


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_local_times_follow_summer_time(unit: str) -> None:
    column = naive("2025-03-09T01:30", "2025-03-09T03:30", "2025-11-02T00:30", "2025-11-02T02:30", unit=unit)
    found, wrong = times_of(column, NEW_YORK)
    assert found.to_pylist() == [
        us("2025-03-09T06:30"),
        us("2025-03-09T07:30"),
        us("2025-11-02T04:30"),
        us("2025-11-02T07:30"),
    ]
    assert not wrong.any()


@pytest.mark.parametrize("as_text", [False, True])
def test_a_time_that_comes_twice_and_one_that_never_comes(as_text: bool) -> None:
    texts = ["2025-11-02 01:30:00", "2025-03-09 02:30:00"]
    column: pa.Array = pa.array(texts) if as_text else naive(*texts)
    skipped = us("2025-03-09T07:00")
    assert times_of(column, NEW_YORK)[0].to_pylist() == [us("2025-11-02T05:30"), skipped]
    assert times_of(column, NEW_YORK, latest=True)[0].to_pylist() == [us("2025-11-02T06:30"), skipped]


def test_texts_may_carry_an_offset_or_not_one_by_one() -> None:
    texts = [
        "2025-06-01T12:00:00Z",
        "2025-06-01 12:00:00",
        "2025-06-01T12:00:00.5+02:00",
        " ",
        None,
        "noon",
        "2025-13-01",
    ]
    found, wrong = times_of(pa.array(texts), NEW_YORK)
    assert found.to_pylist() == [
        us("2025-06-01T12:00"),
        us("2025-06-01T16:00"),
        us("2025-06-01T10:00:00.5"),
        *[None] * 4,
    ]
    assert wrong.tolist() == [False] * 5 + [True] * 2


@pytest.mark.parametrize(
    "column", [naive("2025-06-01"), pa.array(["2025-06-01 12:00"]), pa.array([1.5]), pa.array([True])]
)
def test_times_without_a_zone_or_meaning_are_refused(column: pa.Array) -> None:
    with pytest.raises(WrongColumn, match="want time stamps"):
        times_of(column, "")


@pytest.mark.parametrize(
    ("column", "kind", "from_text", "values", "wrong"),
    [
        (pa.array([1, None]), FeatureType.DOUBLE, False, [1.0, None], []),
        (pa.array([1.0, 2.5, 1e300]), FeatureType.INT64, False, [1, None, None], [1, 2]),
        (pa.array([float("nan"), float("inf"), 2.0]), FeatureType.DOUBLE, False, [None, None, 2.0], [1]),
        (pa.array(["1", " 2 ", "", "x", "1e400"]), FeatureType.DOUBLE, True, [1.0, 2.0, None, None, None], [3, 4]),
        (pa.array(["1", "2.5", "9" * 30]), FeatureType.INT64, True, [1, None, None], [1, 2]),
        (pa.array(["true", "0", "maybe"]), FeatureType.BOOL, True, [True, False, None], [2]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), FeatureType.STRING, False, ["a", "b", "a"], []),
        (pa.array(["a"], pa.large_string()), FeatureType.STRING, False, ["a"], []),
    ],
)
def test_values_are_of_their_type_or_wrong(
    column: pa.Array, kind: FeatureType, from_text: bool, values: list[Any], wrong: list[int]
) -> None:
    found, which = values_of(column, kind, is_list=False, from_text=from_text)
    assert found.to_pylist() == values
    assert which.nonzero()[0].tolist() == wrong


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array(["1"]), FeatureType.DOUBLE),
        (pa.array([1]), FeatureType.STRING),
        (pa.array([1]), FeatureType.BOOL),
        (pa.array([[1.0]]), FeatureType.DOUBLE),
        (pa.array([b"x"]), FeatureType.STRING),
    ],
)
def test_a_column_of_another_kind_is_refused_as_a_whole(column: pa.Array, kind: FeatureType) -> None:
    with pytest.raises(WrongColumn, match=r"want .*, got"):
        values_of(column, kind, is_list=False, from_text=False)
    if kind is FeatureType.STRING:
        with pytest.raises(WrongColumn, match="want text"):
            keys_of(column, kind)
