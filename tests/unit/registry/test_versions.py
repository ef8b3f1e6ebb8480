"""Drafts of versions: files, labels, baselines, and what the digest covers."""

from dataclasses import replace

import pytest

from services.registry.domain.baseline import Baseline, CategoricalProfile, NumericProfile, Profile
from services.registry.domain.signature import FeatureType
from services.registry.domain.version import (
    Lineage,
    ModelFile,
    Runtime,
    VersionDraft,
    check_draft,
    is_alias,
    is_semantic_version,
)
from tests.unit.registry.builders import AMOUNT, GOLDEN, SOUND

DIGEST = "ab" * 32
NUMBERS = NumericProfile((1.0, 0.5, 0.0, 2.0), (0.0, 1.0, 2.0), (3, 4), (0, 0, 0, 1, 2, 2, 2))
WORDS = CategoricalProfile((5, 2), 0, 2)
BASELINE = Baseline(
    row_count=7,
    description="spring",
    features=(Profile("amount", 7, 0, NUMBERS), Profile("city", 7, 0, WORDS)),
    outputs=(Profile("probability/yes", 7, 0, NUMBERS), Profile("prediction", 7, 0, WORDS)),
)
DRAFT = VersionDraft(
    runtime=Runtime.ONNX,
    files=(ModelFile("model.onnx", DIGEST),),
    signature=SOUND,
    semantic_version="1.0.0",
    baseline=BASELINE,
    golden_rows=(GOLDEN,),
)


def wrong(draft: VersionDraft) -> dict[str, str]:
    return {each.field.removeprefix("model_version."): each.description for each in check_draft(draft)}


def files(*paths: str) -> VersionDraft:
    return replace(DRAFT, files=tuple(ModelFile(path, DIGEST) for path in paths))


def baseline(**fields: object) -> VersionDraft:
    return replace(DRAFT, baseline=replace(BASELINE, **fields))  # type: ignore[arg-type]


def amount(**fields: object) -> VersionDraft:
    profile = Profile("amount", 7, 0, replace(NUMBERS, **fields))  # type: ignore[arg-type]
    return baseline(features=(profile,))


def test_a_good_draft_passes() -> None:
    assert wrong(DRAFT) == {}
    assert wrong(files("graph.onnx", "data/weights.bin", "data/more/w-1_2.bin")) == {}


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/etc/passwd",
        "../x",
        "a/../b",
        "a//b",
        "a/",
        ".hidden",
        "a/.b",
        "a\\b",
        "a b",
        "a\x00",
        "C:x",
        "~x",
        "ä",
    ],
)
def test_a_path_that_could_lead_elsewhere_is_refused(path: str) -> None:
    assert "files[0].path" in wrong(files(path))


def test_files_do_not_stand_in_each_others_way() -> None:
    assert "beside" in wrong(files("Model.onnx", "model.onnx"))["files[1].path"]
    assert "as both" in wrong(files("a", "a/b"))["files"]
    assert "as both" in wrong(files("A/b", "a"))["files"]
    assert "got 0" in wrong(files())["files"]
    assert "got 1001" in wrong(files(*[f"f{number}" for number in range(1_001)]))["files"]
    assert "files[0].digest" in wrong(replace(DRAFT, files=(ModelFile("m", DIGEST.upper()),)))


def test_labels_and_aliases_are_never_ids() -> None:
    for label in ("1.0.0", "0.10.2-rc.1", "1.2.3-RC-4"):
        assert is_semantic_version(label)
        assert not is_alias(label)
    for label in ("", "1", "1.2", "01.2.3", "1.2.3+build", "v1.2.3", "1.2.3-", "1.2.3-a..b", "1.2.3\n"):
        assert not is_semantic_version(label)
    for alias in ("champion", "A", "a-1_b"):
        assert is_alias(alias)
    for alias in ("", "1a", "a.b", "a/b", "-a", "a" * 129, "champion\n"):
        assert not is_alias(alias)


@pytest.mark.parametrize(
    ("draft", "field", "said"),
    [
        (baseline(row_count=-1), "baseline.row_count", "got -1"),
        (baseline(features=(Profile("x", 1, 0, NUMBERS),)), "baseline.features[0].name", 'got "x"'),
        (baseline(features=(Profile("city", 1, 0, NUMBERS),)), "baseline.features[0]", "categorical"),
        (baseline(features=(Profile("amount", 1, 0, None),)), "baseline.features[0]", "got none"),
        (baseline(features=(Profile("amount", 1, 2, NUMBERS),)), "baseline.features[0].missing_count", "got 2"),
        (baseline(features=BASELINE.features[:1] * 2), "baseline.features[1].name", "again"),
        (baseline(outputs=(Profile("probability/maybe", 1, 0, NUMBERS),)), "baseline.outputs[0].name", "maybe"),
        (baseline(outputs=(Profile("probability/yes", 1, 0, WORDS),)), "baseline.outputs[0]", "numeric"),
        (baseline(features=(Profile("city", 1, 0, CategoricalProfile((-1,), 0, 1)),)), "baseline.features[0].categorical", "got -1"),
        (baseline(features=(Profile("city", 1, 0, CategoricalProfile((1,) * 1_001, 0, 1)),)), "baseline.features[0].categorical.categories", "got 1001"),
        (amount(figures=(1, float("nan"), 0, 2)), "baseline.features[0].numeric", "finite"),
        (amount(figures=(1, -1, 0, 2)), "baseline.features[0].numeric.standard_deviation", "got -1"),
        (amount(figures=(1, 1, 3, 2)), "baseline.features[0].numeric.minimum", "got 3"),
        (amount(bin_edges=(0.0, 1.0)), "baseline.features[0].numeric.bin_edges", "got 2"),
        (amount(bin_edges=(0.0, 2.0, 1.0)), "baseline.features[0].numeric.bin_edges", "ascending"),
        (amount(bin_counts=(1, -1)), "baseline.features[0].numeric.bin_counts", "negative"),
        (amount(quantiles=(1.0,)), "baseline.features[0].numeric.quantiles", "got 1"),
        (amount(quantiles=(2, 1, 1, 1, 1, 1, 1)), "baseline.features[0].numeric.quantiles", "ascending"),
        (replace(DRAFT, lineage=Lineage(parent_version="v1")), "lineage.parent_version", 'got "v1"'),
        (replace(DRAFT, lineage=Lineage(metrics={"auc": float("inf")})), "lineage.metrics", "finite"),
        (replace(DRAFT, lineage=Lineage(training_data_uri="u" * 2_001)), "lineage.training_data_uri", "got 2001"),
        (replace(DRAFT, description="d" * 10_001), "description", "got 10001"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_why(draft: VersionDraft, field: str, said: str) -> None:
    assert said in wrong(draft)[field]


def test_the_digest_covers_what_decides_the_answers_and_nothing_else() -> None:
    same = replace(DRAFT, semantic_version="2.0.0", description="x", baseline=None, golden_rows=(), document=b"x")
    assert same.digest() == DRAFT.digest()
    others = [
        files("other.onnx"),
        replace(DRAFT, files=(ModelFile("model.onnx", "cd" * 32),)),
        replace(DRAFT, signature=replace(SOUND, features=(replace(AMOUNT, minimum=0.0), *SOUND.features[1:]))),
        replace(
            DRAFT, signature=replace(SOUND, features=(replace(AMOUNT, type=FeatureType.INT64), *SOUND.features[1:]))
        ),
    ]
    assert len({draft.digest() for draft in (DRAFT, *others)}) == 5
