"""Files of definitions: what the page describes can be read, and every mistake is told with file and line."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock_cli.definitions.reading import read_definitions
from interlock_cli.errors import CommandFailed
from services.common.duration_text import format_duration, parse_duration

PAGE = Path(__file__).parents[3] / "docs" / "features.md"
WRONG = """\
entity: carrier
key_typ: string
owner: 12
---
feature_view: x
entities: carrier
max_age: 36 hours
source:
  evnts: {a: double}
features:
  a: {type: dobule, type: int64}
  b:
    nullable: 1
    aggregate: mean
  b: {type: double}
---
just: this
---
[1, 2]
---
feature_view: y
source:
  events: {delay: flaot}
features:
  c: {type: double, aggregate: avg}
"""


def problems(folder: Path, text: str) -> list[str]:
    path = folder / "wrong.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(CommandFailed) as caught:
        read_definitions([folder])
    return [hint.removeprefix(f"{path}:") for hint in caught.value.hints]


def test_every_mistake_is_told_with_its_line(tmp_path: Path) -> None:
    assert problems(tmp_path, WRONG) == [
        "1: key_type: want string or int64, got nothing",
        "2: an entity has no key 'key_typ'; did you mean 'key_type'?",
        "3: owner: want a text, got 12; put quotes around it",
        "6: entities: want a list of texts such as [carrier, plane], got carrier",
        '7: max_age: want a duration such as "36h", "7d", "1h30m" or "500ms", got 36 hours',
        "9: source: want push, or one of files, sql, request, events with what belongs to it",
        "9: the source has no key 'evnts'; did you mean 'events'?",
        "11: type: want double, int64, string or bool, got 'dobule'; did you mean 'double'?",
        "11: want each key once in the feature 'a', got 'type' again",
        "13: nullable: want true or false, got 1",
        "13: type: want double, int64, string or bool, got nothing",
        "14: the feature 'b' has no key 'aggregate'; there are type, list, nullable, default, max_age, description, owner",
        "15: want each key once in the features, got 'b' again",
        "17: want a document with the key 'entity' or 'feature_view', got neither",
        "19: want a definition as keys with values, got a list",
        "23: delay: want double, int64, string or bool, got 'flaot'",
        "25: aggregate: want count, sum, mean, minimum, maximum or last_n, got 'avg'",
        '25: window: want a duration such as "7d", got nothing',
    ]


def test_what_is_no_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    assert problems(tmp_path, "entity: a\n---\nentity: [\n")[0].startswith("4: want YAML: ")


def test_a_folder_without_definitions_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("entity: a")
    with pytest.raises(CommandFailed, match=r"want \.yaml files, got none"):
        read_definitions([tmp_path])
    with pytest.raises(CommandFailed, match="want a file or folder, got nothing"):
        read_definitions([tmp_path / "none"])


def test_the_examples_of_the_page_can_be_read(tmp_path: Path) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "all.yml").write_text("---\n".join(examples), "utf-8")
    found = read_definitions([tmp_path])
    assert [entity.name for entity in found.entities] == ["entities/carrier"]
    views = {view.name.removeprefix("featureViews/"): view for view in found.views}
    assert {name: view.WhichOneof("source") for name, view in views.items()} == {
        "carrier_delays": "push_source",
        "weather": "batch_source",
        "planes": "batch_source",
        "carrier_stats": "aggregate_source",
        "speed": "on_demand_source",
    }
    delays = views["carrier_delays"]
    assert delays.max_age.ToTimedelta() == timedelta(hours=36)
    assert [feature.name for feature in delays.features] == ["delay_mean", "flight_count", "last_delays"]
    assert delays.features[0].default_value.double_value == 0.0
    assert delays.features[0].default_value.HasField("double_value")
    assert dict(views["weather"].batch_source.feature_columns) == {"wind_speed": "wind_mph"}
    assert views["speed"].on_demand_source.expressions["mph"].startswith("if(air_time > 0")
    last = views["carrier_stats"].aggregate_source.aggregates[2]
    assert (last.field, last.last_count, last.window.ToTimedelta()) == ("delay", 5, timedelta(days=30))


@given(st.timedeltas(min_value=timedelta(), max_value=timedelta(days=9999)))
def test_durations_are_read_as_they_are_written(duration: timedelta) -> None:
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize("text", ["", "h", "1", "1x", "1h1h", "1m1h", "-1h", "1.5h", "1 h", "9" * 12 + "d"])
def test_what_is_no_duration_is_none(text: str) -> None:
    assert parse_duration(text) is None
