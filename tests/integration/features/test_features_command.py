"""`interlock features` against the real service: it shows first, asks, and says where a definition is wrong."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from interlock_cli.errors import CommandFailed
from interlock_cli.main import app
from tests.fakes.feature_bindings import FakeBindings, serve_bindings
from tests.fakes.features_service import Features, running_features
from tests.fakes.registry_service import short_folder

FILES = """\
entity: carrier
key_type: string
---
feature_view: delays
entities: [carrier]
source: push
max_age: 36h
features:
  mean: {type: double, description: Minutes}
"""


@pytest.fixture
async def features(tmp_path: Path) -> AsyncIterator[Features]:
    """Version 7 of a model fetches the mean."""
    registry = FakeBindings()
    registry.bind("models/flights/versions/7", name="mean", source="delays.mean")
    with short_folder() as folder, capture_logs():
        address = f"unix:{folder / 'registry.sock'}"
        # The service's log would stand between the command's lines.
        async with (
            serve_bindings(registry, address),
            running_features(tmp_path / "state", tcp=True, registry_address=address) as running,
        ):
            yield running


async def run(features: Features, *arguments: str) -> Result:
    command = ["features", *arguments, "--target", features.address]
    return await asyncio.to_thread(lambda: CliRunner().invoke(app, command))


async def failure(features: Features, *arguments: str) -> CommandFailed:
    result = await run(features, *arguments)
    assert isinstance(result.exception, CommandFailed), result.output
    return result.exception


async def test_a_change_is_shown_then_made_then_listed(features: Features, tmp_path: Path) -> None:
    file = tmp_path / "delays.yaml"
    file.write_text(FILES)
    shown = await run(features, "apply", str(file), "--dry-run")
    assert [line.split()[:2] for line in shown.output.splitlines()] == [
        ["CHANGE", "DEFINITION"],
        ["create", "entities/carrier"],
        ["create", "featureViews/delays"],
        ["2", "to"],
    ]
    assert "nobody is there to be asked" in (await failure(features, "apply", str(file))).message
    assert await features.names() == []
    assert (await run(features, "apply", str(file), "--yes")).output.endswith("applied\n")
    assert (await run(features, "apply", str(file), "--yes")).output == "nothing changes\n"
    file.write_text(FILES.replace("36h", "2d").replace("Minutes", "'Mean, minutes'"))
    changed = (await run(features, "apply", str(file), "--yes")).output.splitlines()
    assert [line.split(maxsplit=4) for line in changed[1:3]] == [
        ["update", "featureViews/delays", "features.mean.description", "Minutes", '"Mean, minutes"'],
        ["update", "featureViews/delays", "max_age", "36h", "2d"],
    ]
    listed = (await run(features, "list")).output.splitlines()[1].split()
    assert listed == ["delays", "carrier", "push", "1", "2d", "-", "-"]
    assert "Mean, minutes" in (await run(features, "show", "delays")).output
    assert json.loads((await run(features, "show", "delays", "--json")).output)["max_age"] == "172800s"


async def test_a_change_that_breaks_a_version_is_shown_and_not_made(features: Features, tmp_path: Path) -> None:
    file = tmp_path / "delays.yaml"
    file.write_text(FILES)
    await run(features, "apply", str(file), "--yes")
    file.write_text(FILES.replace("type: double", "type: int64"))
    failed = await failure(features, "apply", str(tmp_path), "--yes")
    assert failed.hints == ("featureViews/delays: models/flights/versions/7",)
    file.write_text(FILES.partition("---")[0])
    shown = await run(features, "apply", str(file), "--dry-run", "--delete-missing", "--json")
    kinds = [each["kind"] for each in json.loads(shown.output)["changes"]]
    assert kinds == ["CHANGE_KIND_UNCHANGED", "CHANGE_KIND_DELETED"]
    assert isinstance(shown.exception, CommandFailed)
    assert await features.names() == ["entities/carrier", "featureViews/delays"]


async def test_what_the_service_refuses_is_told_where_it_stands(features: Features, tmp_path: Path) -> None:
    file = tmp_path / "delays.yaml"
    file.write_text(FILES.replace("[carrier]", "[none]") + "  known_at: {type: double}\n")
    failed = await failure(features, "apply", str(file), "--yes")
    places = [hint.removeprefix(f"{file}:").partition(": want")[0] for hint in failed.hints]
    assert places == ["10: known_at: name", "4: entities[0]"]
