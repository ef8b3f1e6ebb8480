"""What commands make of their arguments."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from interlock.registry.v1 import deployment_pb2, model_version_pb2, route_pb2
from interlock.router.v1 import prediction_pb2
from interlock.types.v1 import feature_value_pb2, tensor_pb2

from interlock_cli.commands.models import read_version
from interlock_cli.commands.predict import prediction_to_json, read_entities, read_features, read_time
from interlock_cli.commands.routes import new_variants, parse_weights, read_batching
from interlock_cli.errors import CommandFailed
from interlock_cli.output import duration, plain_lines

ROUTE = route_pb2.Route(
    name="models/m/routes/production",
    variants=[
        route_pb2.Variant(name="old", deployment="deployments/m-1-production", weight_basis_points=9000),
        route_pb2.Variant(name="new", deployment="deployments/m-2-production", weight_basis_points=1000),
    ],
)
DEPLOYED = [
    deployment_pb2.Deployment(name=f"deployments/m-{number}-production", model_version=f"models/m/versions/{number}")
    for number in (1, 2, 3)
]


def test_features_are_a_json_object() -> None:
    assert read_features('{"a": 1, "b": null, "c": [true, "x"]}') == {"a": 1, "b": None, "c": [True, "x"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "want a JSON object, got list"),
        ("{", "want a JSON object, got something else: .*line 1 column 2"),
        ('{"a": NaN}', "NaN is no JSON number"),
    ],
)
def test_features_that_are_none_are_refused(text: str, message: str) -> None:
    with pytest.raises(CommandFailed, match=message):
        read_features(text)


def test_keys_and_times_are_read_strictly() -> None:
    assert read_entities('{"carrier": "B6"}') == {"carrier": "B6"}
    with pytest.raises(CommandFailed, match="--entities: carrier: want a text, got 6"):
        read_entities('{"carrier": 6}')
    assert read_time("") is None
    assert read_time("2026-03-01T08:30:00Z") == datetime(2026, 3, 1, 8, 30, tzinfo=UTC)
    for wrong in ("2026-03-01T08:30:00", "yesterday"):
        with pytest.raises(CommandFailed, match="--as-of: want a time"):
            read_time(wrong)


def test_a_prediction_shows_plain_values_and_defaults() -> None:
    answer = prediction_pb2.Prediction(
        prediction_id="p", prediction=feature_value_pb2.FeatureValue(int64_value=0), label="on_time", confidence=0.8
    )
    shown = prediction_to_json(answer)
    assert shown["prediction"] == 0
    assert (shown["label"], shown["confidence"], shown["cached"]) == ("on_time", 0.8, False)


def test_weights_are_percent_by_name() -> None:
    assert parse_weights("v1=90, v2=10") == {"v1": 9000, "v2": 1000}
    assert parse_weights("1=33.33,2=66.67") == {"1": 3333, "2": 6667}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v1=90", "add up to 100, got 90"),
        ("v1", "want NAME=PERCENT, got 'v1'"),
        ("v1=x", "want NAME=PERCENT, got 'v1=x'"),
        ("v1=-10,v2=110", "want 0 to 100 percent, got 'v1=-10'"),
        ("v1=nan", "want 0 to 100 percent"),
        ("v1=50,v1=50", "'v1' is named twice"),
    ],
)
def test_weights_that_make_no_split_are_refused(text: str, message: str) -> None:
    with pytest.raises(CommandFailed, match=message):
        parse_weights(text)


def test_a_policy_is_read_field_by_field() -> None:
    policy, fields = read_batching(
        ["max_delay=5ms", "batch_sizes=1,8", "placement=shared", "ageing=", "max_batch_size=8", "non_finite=refuse"]
    )
    assert policy.max_delay.ToMilliseconds() == 5
    assert (list(policy.batch_sizes), policy.max_batch_size) == ([1, 8], 8)
    assert policy.placement == deployment_pb2.MODEL_PLACEMENT_SHARED
    assert not policy.HasField("ageing")
    assert policy.non_finite == deployment_pb2.NON_FINITE_POLICY_REFUSE
    assert fields == ["max_delay", "batch_sizes", "placement", "ageing", "max_batch_size", "non_finite"]
    for wrong in ("colour=red", "max_delay=5", "max_batch_size=many", "placement=elsewhere", "batch_sizes=a"):
        with pytest.raises(CommandFailed, match="--set: "):
            read_batching([wrong])


def test_a_variant_keeps_its_name_and_a_new_one_gets_its_versions() -> None:
    variants = new_variants(ROUTE, DEPLOYED, {"v1": 5000, "new": 2000, "3": 3000})
    assert [(v.name, v.deployment, v.weight_basis_points) for v in variants] == [
        ("old", "deployments/m-1-production", 5000),
        ("new", "deployments/m-2-production", 2000),
        ("3", "deployments/m-3-production", 3000),
    ]


def test_a_weight_for_what_is_not_deployed_names_what_is() -> None:
    with pytest.raises(CommandFailed, match="no variant, version or deployment is 'v9'") as caught:
        new_variants(ROUTE, DEPLOYED, {"v9": 10_000})
    assert caught.value.hints == ("there are: old, new, 3",)


def test_a_version_is_read_from_json(tmp_path: Path) -> None:
    text = json.dumps({"description": "d", "signature": {"inputs": [{"name": "x", "data_type": "DATA_TYPE_FP32"}]}})
    version = read_version(text, tmp_path / "unread.onnx")
    assert version.runtime == model_version_pb2.RUNTIME_ONNX
    assert version.signature.inputs == [tensor_pb2.TensorSpec(name="x", data_type=tensor_pb2.DATA_TYPE_FP32)]


@pytest.mark.parametrize("text", ["[]", '{"signatur": {}}', '{"runtime": "RUNTIME_WISH"}'])
def test_a_version_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="want JSON of a ModelVersion"):
        read_version(text, tmp_path / "unread.onnx")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.onnx"
    file.write_bytes(b"not a model at all")
    with pytest.raises(CommandFailed, match=r"x\.onnx: want an ONNX model, got something else"):
        read_version("{}", file)


def test_a_piped_table_is_aligned_and_cuts_nothing_off() -> None:
    assert plain_lines(("model", "created at"), [("m", "x" * 100), ("longer", "")]) == [
        "MODEL   CREATED_AT",
        "m       " + "x" * 100,
        "longer  -",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.9, "0s"), (59, "59s"), (60, "1m00s"), (3_725, "1h02m"), (90_000, "1d01h")],
)
def test_durations_are_short(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
