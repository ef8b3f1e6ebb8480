"""What a caller asks, checked as far as the signature is not needed for it."""

from dataclasses import dataclass
from typing import Final

from interlock.router.v1 import router_service_pb2 as pb

from services.common.errors import Violation
from services.common.names import parse_id
from services.router.convert.feature_value import features_from_proto
from services.router.domain.answer import Row
from services.router.domain.failure import InvalidField

ROWS_LIMIT: Final = 1000


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
    row = Row(features_from_proto(request.features), request.user_id)
    return PredictAsk(request.model, request.version, row, request.include_probabilities)


def rows_from_proto(request: pb.PredictRowsRequest) -> RowsAsk:
    """Return the request for several rows; raises InvalidArgument for their number and for illegal names."""
    check_names(request.model, request.version)
    check_row_count(len(request.rows))
    rows = tuple(Row(features_from_proto(row.features), row.user_id) for row in request.rows)
    return RowsAsk(request.model, request.version, rows, request.include_probabilities)


def check_names(model: str, version: str, *, model_field: str = "model", version_field: str = "version") -> None:
    """Refuse a model or version that cannot be a name; an empty version is none."""
    if not model:
        raise InvalidField([Violation(model_field, "want the id of a model, got nothing")])
    parse_id(model, model_field)
    if version:
        parse_id(version, version_field)


def check_row_count(count: int) -> None:
    """Refuse no rows and more than 1,000."""
    if not 1 <= count <= ROWS_LIMIT:
        raise InvalidField([Violation("rows", f"want 1 to {ROWS_LIMIT} rows, got {count}")])
