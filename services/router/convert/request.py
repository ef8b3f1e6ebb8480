"""What a caller asks, checked as far as the signature is not needed for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from interlock.router.v1 import router_service_pb2 as pb

from services.common.errors import Violation
from services.common.names import is_id, parse_id
from services.router.convert.feature_value import features_from_proto
from services.router.domain.failure import InvalidField
from services.router.domain.row import Row

ROWS_LIMIT: Final = 1000
ENTITIES_LIMIT: Final = 64
KEY_LIMIT_BYTES: Final = 512
_NANOS: Final = 1_000_000_000
_US_PER_S: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class PredictAsk:
    """A request for one row."""

    model: str
    version: str
    row: Row
    probabilities: bool


@dataclass(frozen=True, slots=True)
class RowsAsk:
    """A request for several rows of one model."""

    model: str
    version: str
    rows: tuple[Row, ...]
    probabilities: bool


def predict_from_proto(request: pb.PredictRequest) -> PredictAsk:
    """Return the request for one row; raises InvalidArgument for names that break the rule of ids."""
    check_names(request.model, request.version)
    row = row_from_proto(request, "as_of_time")
    if row.entities:
        check_entities([row])
    return PredictAsk(request.model, request.version, row, request.include_probabilities)


def rows_from_proto(request: pb.PredictRowsRequest) -> RowsAsk:
    """Return the request for several rows; raises InvalidArgument for their number and for illegal names."""
    check_names(request.model, request.version)
    check_row_count(len(request.rows))
    rows = tuple(row_from_proto(row, f"rows[{index}].as_of_time") for index, row in enumerate(request.rows))
    check_entities(rows)
    return RowsAsk(request.model, request.version, rows, request.include_probabilities)


def row_from_proto(request: pb.PredictRequest | pb.PredictRow, time_field: str) -> Row:
    """Return a row whose entities are not checked yet; `time_field` names its time in an error."""
    as_of_us = _microseconds(request.as_of_time, time_field) if request.HasField("as_of_time") else None
    entities = request.entities
    keys = dict(entities) if entities else {}
    return Row(features_from_proto(request.features), request.user_id, keys, as_of_us)


def check_entities(rows: Sequence[Row]) -> None:
    """Refuse keys of entities that no feature view can have; `entities` stands for those of all rows."""
    names = {name for row in rows for name in row.entities}
    if len(names) > ENTITIES_LIMIT:
        raise InvalidField([Violation("entities", f"want at most {ENTITIES_LIMIT} entities, got {len(names)}")])
    for name in names:
        parse_id(name, "entities")
    for row in rows:
        for name, key in row.entities.items():
            if len(key) > KEY_LIMIT_BYTES or len(key.encode()) > KEY_LIMIT_BYTES:
                want = f"want a key of at most {KEY_LIMIT_BYTES} bytes, got {len(key.encode())}"
                raise InvalidField([Violation(f"entities.{name}", want)])


def check_names(model: str, version: str, *, model_field: str = "model", version_field: str = "version") -> None:
    """Refuse a model or version that cannot be a name; an empty version is none."""
    if not model:
        raise InvalidField([Violation(model_field, "want the id of a model, got nothing")])
    if not is_id(model):
        parse_id(model, model_field)
    if version and not is_id(version):
        parse_id(version, version_field)


def check_row_count(count: int, limit: int = ROWS_LIMIT) -> None:
    """Refuse no rows and more than `limit`."""
    if not 1 <= count <= limit:
        raise InvalidField([Violation("rows", f"want 1 to {limit} rows, got {count}")])


def _microseconds(time: Timestamp, field: str) -> int:
    if not 0 <= time.nanos < _NANOS:
        raise InvalidField([Violation(field, f"want nanos from 0 to {_NANOS - 1}, got {time.nanos}")])
    return time.seconds * _US_PER_S + time.nanos // 1_000
