"""Versions that were trained before."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from interlock_cli.demo import cache as demo_cache
from interlock_cli.demo.build import train_version
from interlock_cli.demo.cache import cached_version, recipe_digest
from interlock_cli.demo.data import RECIPES, Flights, Recipe
from interlock_cli.demo.lineage import later_quality, training_late_share

TIMETABLE, LIVE = RECIPES


@pytest.fixture(scope="module")
def folder(all_flights: Flights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both versions."""
    folder = tmp_path_factory.mktemp("trained")
    for recipe in RECIPES:
        train_version(recipe, all_flights, folder)
    return folder


@pytest.mark.parametrize(("recipe", "least_auc"), [(TIMETABLE, 0.6), (LIVE, 0.73)], ids=["timetable", "live"])
def test_both_versions_beat_both_base_rates_on_all_later_flights(
    all_flights: Flights, folder: Path, recipe: Recipe, least_auc: float
) -> None:
    version = cached_version(recipe, folder)
    assert version is not None
    quality = later_quality(version.description)
    assert quality.flight_count == 109_619
    assert quality.auc > least_auc
    assert quality.brier < quality.hindsight_brier < quality.prior_brier
    assert training_late_share(version.description) == all_flights.within(recipe.window).late_share()


def test_training_again_gives_the_same_version(all_flights: Flights, folder: Path, tmp_path: Path) -> None:
    assert cached_version(TIMETABLE, tmp_path) is None
    again = train_version(TIMETABLE, all_flights, tmp_path)
    assert cached_version(TIMETABLE, tmp_path) == again
    first = cached_version(TIMETABLE, folder)
    assert first is not None
    assert again.description == first.description
    assert again.artifact_path.read_bytes() == first.artifact_path.read_bytes()


@pytest.mark.parametrize("name", ["model.onnx", "version.binpb"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\xffgarbage"])
def test_a_damaged_version_is_not_used(folder: Path, tmp_path: Path, name: str, content: bytes | None) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    trained = cached_version(TIMETABLE, tmp_path)
    assert trained is not None
    damaged = trained.artifact_path.with_name(name)
    if content is None:
        damaged.unlink()
    else:
        damaged.write_bytes(content)
    assert cached_version(TIMETABLE, tmp_path) is None
    assert cached_version(LIVE, tmp_path) is not None


def test_two_starts_that_keep_the_same_version_at_once_both_have_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = cached_version(TIMETABLE, folder)
    assert version is not None
    artifact = version.artifact_path.read_bytes()
    demo_cache.keep_version(TIMETABLE, tmp_path, artifact, version.description)
    # The other start's folder comes back after this one has cleared its place.
    monkeypatch.setattr(shutil, "rmtree", _clear_all_but(version.artifact_path.parent.name))
    demo_cache.keep_version(TIMETABLE, tmp_path, artifact, version.description)
    assert cached_version(TIMETABLE, tmp_path) is not None
    assert [path.name for path in tmp_path.iterdir()] == [version.artifact_path.parent.name]


def _clear_all_but(name: str) -> Callable[..., None]:
    rmtree = shutil.rmtree

    def clear(path: Path, *, ignore_errors: bool = False) -> None:
        if path.name != name:
            rmtree(path, ignore_errors=ignore_errors)

    return clear


def test_other_code_libraries_or_windows_are_another_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {recipe_digest(TIMETABLE), recipe_digest(LIVE)}
    source = tmp_path / "source.py"
    monkeypatch.setattr(demo_cache, "_sources", lambda: [source])
    for text in ("a = 1", "a = 2"):
        source.write_text(text)
        digests.add(recipe_digest(TIMETABLE))
    monkeypatch.setattr(demo_cache, "version", lambda _: "0.0")
    digests.add(recipe_digest(TIMETABLE))
    assert len(digests) == 5
