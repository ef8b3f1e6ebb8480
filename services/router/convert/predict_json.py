"""Predict and PredictRows as JSON: the fields of the messages, with plain values."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from google.api.httpbody_pb2 import HttpBody
from interlock.router.v1 import prediction_pb2

from services.common.errors import ServiceError, Violation, to_status
from services.common.json_body import Fields, decode_object, raise_violations
from services.common.rest_twin import JSON_CONTENT_TYPE, error_answer
from services.common.wording import describe
from services.router.convert.prediction import ASSIGNMENTS
from services.router.convert.request import PredictAsk, RowsAsk, check_entities, check_names, check_row_count
from services.router.domain.answer import Answer
from services.router.domain.row import Row

_PREDICT: Final = ("model", "features", "entities", "user_id", "version", "include_probabilities", "as_of_time")
_ROWS: Final = ("model", "rows", "version", "include_probabilities")
_ROW: Final = ("features", "entities", "user_id", "as_of_time")
_ENCODER: Final = msgspec.json.Encoder()
_V1_PATH: Final = "/v1"


def predict_from_json(body: bytes) -> PredictAsk:
    """Return the request for one row; raises InvalidArgument with the place of everything that does not fit."""
    fields = Fields(decode_object(body), _PREDICT)
    row = _row(fields)
    ask = PredictAsk(fields.text("model"), fields.text("version"), row, fields.flag("include_probabilities"))
    fields.check()
    check_names(ask.model, ask.version)
    if row.entities:
        check_entities([row])
    return ask


def rows_from_json(body: bytes) -> RowsAsk:
    """Return the request for several rows; raises InvalidArgument as for one."""
    fields = Fields(decode_object(body), _ROWS)
    found = fields.items("rows")
    model, version = fields.text("model"), fields.text("version")
    probabilities = fields.flag("include_probabilities")
    fields.check()
    check_names(model, version)
    check_row_count(len(found))
    rows = _rows(found)
    check_entities(rows)
    return RowsAsk(model, version, rows, probabilities)


def prediction_to_json(answer: Answer, *, probabilities: bool) -> HttpBody:
    """Return the answer to one row, defaults printed; label and confidence only where there are any."""
    return _body(_prediction(answer, probabilities=probabilities))


def rows_to_json(results: Sequence[Answer | ServiceError], *, probabilities: bool, request_id: str) -> HttpBody:
    """Return one result per row: `{"prediction": {...}}` or `{"error": google.rpc.Status}`."""
    return _body({
        "results": [
            {"error": _status(result, request_id)}
            if isinstance(result, ServiceError)
            else {"prediction": _prediction(result, probabilities=probabilities)}
            for result in results
        ]
    })  # fmt: skip


def _row(fields: Fields) -> Row:
    entities, as_of_us = fields.texts("entities"), fields.moment_us("as_of_time")
    return Row(fields.members("features"), fields.text("user_id"), entities, as_of_us)


def _rows(found: Sequence[Any]) -> tuple[Row, ...]:
    rows: list[Row] = []
    for index, row in enumerate(found):
        if not isinstance(row, dict):
            raise_violations([Violation(f"rows[{index}]", f"want an object, got {describe(row)}")])
        fields = Fields(row, _ROW, f"rows[{index}]")
        rows.append(_row(fields))
        fields.check()
    return tuple(rows)


def _prediction(answer: Answer, *, probabilities: bool) -> dict[str, object]:
    reading, choice = answer.reading, answer.choice
    found: dict[str, object] = {"prediction_id": str(answer.id), "prediction": reading.prediction}
    if reading.label is not None:
        found["label"] = reading.label
    if reading.confidence is not None:
        found["confidence"] = reading.confidence
    found.update(
        latency_ms=answer.latency_ms,
        model_version=answer.model_version,
        variant=choice.variant,
        served_by=answer.served_by,
        degraded=answer.degraded,
        cached=False,
        probabilities=reading.probabilities if probabilities else (),
        assignment=prediction_pb2.Assignment.Name(ASSIGNMENTS[choice.assignment]),
        flagged=answer.flagged,
        config_epoch=choice.epoch,
        missing_features=answer.missing,
    )
    return found


def _status(error: ServiceError, request_id: str) -> msgspec.Raw:
    # The door's rendering, so that an error looks the same alone and among rows.
    return msgspec.Raw(error_answer(to_status(error, request_id), _V1_PATH)[1].data)


def _body(value: object) -> HttpBody:
    return HttpBody(content_type=JSON_CONTENT_TYPE, data=_ENCODER.encode(value))
