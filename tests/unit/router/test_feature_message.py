"""What the features service is asked: values of requests as the contract has them."""

import math

import pytest
from interlock.types.v1.feature_value_pb2 import FeatureValue

from services.router.adapters.features_client.message import read_request
from services.router.domain.enrichment import FeatureAsk


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (1.5, FeatureValue(double_value=1.5)),
        (0, FeatureValue(int64_value=0)),
        (-(2**63), FeatureValue(int64_value=-(2**63))),
        (2**63, FeatureValue(double_value=2.0**63)),
        (-(10**300), FeatureValue(double_value=-1e300)),
        (False, FeatureValue(bool_value=False)),
        ("", FeatureValue(string_value="")),
        (None, FeatureValue(null_value=0)),  # type: ignore[arg-type]
        (math.nan, FeatureValue(null_value=0)),  # type: ignore[arg-type]
    ],
)
def test_each_value_a_row_may_hold_is_sent(value: object, sent: FeatureValue) -> None:
    request = read_request(["a.b"], [FeatureAsk({"e": "k"}, {"v": value})], None)
    assert request.rows[0].request_values["v"] == sent
    assert request.rows[0].request_values["v"].WhichOneof("kind") == sent.WhichOneof("kind")
