"""Feature values of the contract as plain values, and back."""

from collections.abc import Mapping
from typing import Final

from interlock.types.v1 import feature_value_pb2

from services.common.errors import Violation
from services.router.domain.failure import InvalidFeatures
from services.router.domain.feature import MISSING

# Far more than models have; unpacking a message full of names costs a hundred times its size.
FEATURES_LIMIT: Final = 10_000


def value_from_proto(value: feature_value_pb2.FeatureValue) -> object:
    """Return the plain value. No kind set counts as missing; of a list only its length is kept, for the refusal."""
    kind = value.WhichOneof("kind")
    if kind is None:
        return MISSING
    if kind == "null_value":
        return None
    if kind == "list_value":
        # Columns take single values, and unpacking what is refused anyway would cost 100 times its size.
        return [None] * len(value.list_value.values)
    return getattr(value, kind)


def features_from_proto(features: Mapping[str, feature_value_pb2.FeatureValue]) -> dict[str, object]:
    """Return plain values by feature name; raises InvalidFeatures for more than any signature can have."""
    if len(features) > FEATURES_LIMIT:
        raise InvalidFeatures([Violation("features", f"want at most {FEATURES_LIMIT} features, got {len(features)}")])
    found: dict[str, object] = {}
    # By name and not by items(), which protobuf's maps have in Python only.
    for name in features:
        value = features[name]
        # To ask what kind a value is costs more than all the rest; a number that is not 0 tells itself.
        found[name] = value.double_value or value_from_proto(value)
    return found
