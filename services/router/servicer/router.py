"""interlock.router.v1.RouterService."""

from interlock.router.v1 import router_service_pb2 as pb

from services.common.call import Call
from services.router.convert.prediction import prediction_to_proto, rows_to_proto
from services.router.convert.request import predict_from_proto, rows_from_proto
from services.router.domain.prediction import Predictor


class RouterServicer:
    """Predicts by features."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    async def Predict(self, request: pb.PredictRequest, call: Call) -> pb.PredictResponse:
        """Predict one row."""
        ask = predict_from_proto(request)
        answer = await self._predictor.predict(ask.model, ask.version, ask.row, call)
        return pb.PredictResponse(prediction=prediction_to_proto(answer, probabilities=ask.probabilities))

    async def PredictRows(self, request: pb.PredictRowsRequest, call: Call) -> pb.PredictRowsResponse:
        """Predict several rows, each with its own outcome."""
        ask = rows_from_proto(request)
        results = await self._predictor.predict_rows(ask.model, ask.version, ask.rows, call)
        return rows_to_proto(results, probabilities=ask.probabilities, request_id=call.request_id)
