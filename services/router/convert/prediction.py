"""Answers of the domain as messages of the contract."""

from collections.abc import Sequence
from typing import Final

from interlock.router.v1 import prediction_pb2
from interlock.router.v1 import router_service_pb2 as pb
from interlock.types.v1 import feature_value_pb2

from services.common.errors import ServiceError, to_status
from services.router.domain.answer import Answer
from services.router.domain.routing import Assignment

ASSIGNMENTS: Final = {
    Assignment.STICKY: prediction_pb2.ASSIGNMENT_STICKY,
    Assignment.PER_REQUEST: prediction_pb2.ASSIGNMENT_PER_REQUEST,
    Assignment.PINNED: prediction_pb2.ASSIGNMENT_PINNED,
}


def prediction_to_proto(answer: Answer, *, probabilities: bool) -> prediction_pb2.Prediction:
    """Return the answer to one row, with the probability of each label when asked for."""
    reading, choice = answer.reading, answer.choice
    value = (
        feature_value_pb2.FeatureValue(double_value=reading.prediction)
        if reading.label is None
        else feature_value_pb2.FeatureValue(int64_value=int(reading.prediction))
    )
    return prediction_pb2.Prediction(
        prediction_id=str(answer.id),
        prediction=value,
        label=reading.label,
        confidence=reading.confidence,
        latency_ms=answer.latency_ms,
        model_version=answer.model_version,
        variant=choice.variant,
        served_by=answer.served_by,
        degraded=answer.degraded,
        probabilities=reading.probabilities if probabilities else (),
        assignment=ASSIGNMENTS[choice.assignment],
        flagged=answer.flagged,
        config_epoch=choice.epoch,
        missing_features=answer.missing,
    )


def rows_to_proto(
    results: Sequence[Answer | ServiceError], *, probabilities: bool, request_id: str
) -> pb.PredictRowsResponse:
    """Return one result per row."""
    return pb.PredictRowsResponse(
        results=[row_to_proto(result, probabilities=probabilities, request_id=request_id) for result in results]
    )


def row_to_proto(result: Answer | ServiceError, *, probabilities: bool, request_id: str) -> pb.PredictRowResult:
    """Return the result of one row."""
    if isinstance(result, ServiceError):
        return pb.PredictRowResult(error=to_status(result, request_id))
    return pb.PredictRowResult(prediction=prediction_to_proto(result, probabilities=probabilities))
