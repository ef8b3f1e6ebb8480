"""Batches become columns, columns a table of the log, and the table columns again."""

from dataclasses import replace
from struct import pack

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.monitor.convert.prediction_batch import batch_from_proto
from services.monitor.convert.version import version_from_proto
from services.monitor.domain.batch_view import BatchView
from services.monitor.domain.column_form import form_of
from services.monitor.domain.columns import PredictionColumns
from services.monitor.domain.decode import MalformedTensor, columns_of, texts_of, times_of_ids
from services.monitor.domain.log_table import columns_of_table, first_id, sample, table_of, unified_schema
from services.monitor.domain.naming import named
from services.monitor.domain.raw_batch import RawBatch, RawTensor
from tests.fakes.monitor_registry import model_version
from tests.fakes.monitor_traffic import draw_traffic, requests

INFO = version_from_proto(model_version())
TRAFFIC = draw_traffic(4, [1_700_000_000.25 + index for index in range(40)])


def _raw(failed: int = 0) -> RawBatch:
    """The batch of TRAFFIC, of which the first ones failed and have no tensors."""
    (request,) = requests(TRAFFIC)
    batch = request.batch
    batch.has_tensors[:failed] = [False] * failed
    batch.statuses[:failed] = [14] * failed
    for tensor in (*batch.inputs, *batch.outputs):
        size = len(tensor.data) // len(TRAFFIC) if tensor.name != "texts" else 6
        tensor.data = tensor.data[failed * size :]
        tensor.shape[0] -= failed
    found = batch_from_proto(request)
    assert found is not None
    return found


def _columns(failed: int = 0) -> PredictionColumns:
    return columns_of(_raw(failed), INFO)


def test_columns_have_the_names_and_types_of_the_signature() -> None:
    found = _columns(failed=3)
    assert (found.count, found.row_count, found.rows[0]) == (40, 37, 3)
    assert found.prediction_time_us[1] == 1_700_000_001_250_000
    np.testing.assert_array_equal(found.features["amount"], TRAFFIC.amount[3:])
    country = found.features["country"]
    assert isinstance(country, pa.DictionaryArray)
    assert country.to_pylist() == list(TRAFFIC.country[3:])
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities[:, 1], TRAFFIC.chance[3:])
    np.testing.assert_array_equal(found.predicted, TRAFFIC.chance[3:] >= 0.5)
    assert set(found.buckets) == {-1}


def test_what_the_route_redacts_is_missing_whatever_stands_in_the_tensors() -> None:
    raw = replace(_raw(), redacted=frozenset({"country", "items", "member", "who"}))
    for found in (columns_of(raw, INFO), named(columns_of(raw, None), INFO)):
        table = table_of(found, np.arange(40))
        assert [table[f"features.{name}"].null_count for name in ("country", "items", "member")] == [40] * 3
        assert table["features.amount"].null_count == 0
        assert table["redacted_features"].to_pylist() == [["country", "items", "member", "who"]] * 40
        for columns in (found, columns_of_table(table, INFO)):
            assert set(BatchView(columns, INFO, form_of(INFO, 100)).features) == {"amount"}


def test_without_a_signature_columns_are_named_after_their_tensors() -> None:
    found = columns_of(_raw(), None)
    assert list(found.features) == ["numbers[0]", "numbers[1]", "numbers[2]", "texts"]
    assert found.predicted is None


def test_a_table_gives_back_the_columns_it_was_made_of() -> None:
    columns = _columns()
    table = table_of(columns, np.arange(columns.count))
    assert table.schema.field("features.items").type == pa.int64()
    assert table.schema.field("features.member").type == pa.bool_()
    again = columns_of_table(table, INFO)
    for name in ("ids", "prediction_time_us", "statuses", "buckets", "weights", "predicted", "latencies_us"):
        np.testing.assert_array_equal(getattr(again, name), getattr(columns, name), err_msg=name)
    assert again.probabilities is not None
    assert columns.probabilities is not None
    np.testing.assert_allclose(again.probabilities, columns.probabilities)
    assert again.features["country"].to_pylist() == list(TRAFFIC.country)  # type: ignore[union-attr]
    np.testing.assert_array_equal(again.features["member"], TRAFFIC.member != 0)


def test_what_is_missing_or_was_not_run_is_null() -> None:
    columns = _columns(failed=2)
    amount = TRAFFIC.amount[2:].copy()
    amount[0] = np.nan
    keys = pa.array([None, "c-1"] * 20, pa.string())
    times = {"amount": np.array([0, 5_000_000] * 20), "country": np.zeros(40, dtype=np.int64)}
    changed = replace(
        columns,
        features={**columns.features, "amount": amount, "items": np.full(38, np.nan)},
        entity_keys={"customer": keys},
        feature_event_times_us=times,
    )
    chosen = np.array([0, 2, 3])
    table = table_of(changed, chosen, weight_factor=4.0)
    assert table["features.amount"].to_pylist() == [None, None, TRAFFIC.amount[3]]
    assert table["features.items"].to_pylist() == [None, None, None]
    assert table["prediction"].null_count == 1
    assert table["entities"].to_pylist() == [[], [], [("customer", "c-1")]]
    assert [[name for name, _ in found] for found in table["feature_event_times"].to_pylist()] == [[], [], ["amount"]]
    assert table["sampling_weight"].to_pylist() == [4.0] * 3


def test_versions_whose_features_differ_share_one_schema() -> None:
    one = pa.schema([("features.a", pa.int64()), ("features.b", pa.string()), ("features.c", pa.float32())])
    other = pa.schema([("features.a", pa.float32()), ("features.b", pa.float64()), ("features.d", pa.bool_())])
    found = unified_schema([one, other])
    kinds = {name: str(found.field(f"features.{name}").type) for name in "abcd"}
    assert kinds == {"a": "double", "b": "string", "c": "float", "d": "bool"}


@given(st.lists(st.binary(max_size=12), max_size=30), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_texts_are_split_as_they_were_joined_and_never_when_cut(texts: list[bytes], cut: int) -> None:
    data = b"".join(pack("<I", len(text)) + text for text in texts)
    assert texts_of(RawTensor("t", "BYTES", (len(texts), 1), data)) == texts
    if 0 < cut <= len(data):
        with pytest.raises(MalformedTensor):
            texts_of(RawTensor("t", "BYTES", (len(texts), 1), data[:-cut]))
    with pytest.raises(MalformedTensor):
        texts_of(RawTensor("t", "BYTES", (len(texts) + 1, 1), data))


def test_text_that_is_not_utf8_is_still_told_apart() -> None:
    raw = _raw()
    texts = b"".join(pack("<I", 1) + bytes([200 + index % 2]) for index in range(40))
    wrong = replace(raw, inputs=(raw.inputs[0], RawTensor("texts", "BYTES", (40, 1), texts)))
    assert columns_of(wrong, INFO).features["country"].null_count == 0  # type: ignore[union-attr]


def test_brain_floats_are_widened() -> None:
    ones = np.full(40, 0x3F80, dtype="<u2").tobytes()
    raw = replace(_raw(), outputs=(RawTensor("x", "BF16", (40, 1), ones),))
    assert columns_of(raw, None).outputs["x"].tolist() == [[1.0]] * 40


def test_a_sample_takes_its_share_and_always_the_same_ids() -> None:
    ids = np.random.default_rng(1).integers(0, 256, (20_000, 16), dtype=np.uint8)
    chosen = sample(ids, 500)
    assert 850 < chosen.sum() < 1150
    np.testing.assert_array_equal(chosen, sample(ids, 500))
    assert not (chosen & ~sample(ids, 2_000)).any()
    assert sample(ids, 10_000).all()


def test_the_first_id_of_a_time_stands_before_its_predictions() -> None:
    ids = _columns().ids
    assert first_id(int(times_of_ids(ids)[0])) <= bytes(ids[0])
    assert first_id(int(times_of_ids(ids)[0]) + 1000) > bytes(ids[0])


def test_what_no_version_answered_has_no_features() -> None:
    raw = _raw()
    assert columns_of(replace(raw, key=replace(raw.key, version="")), None).features == {}
