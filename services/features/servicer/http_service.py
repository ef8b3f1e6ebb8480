"""interlock.features.v1.FeaturesHttpService: the same use cases over REST; the chain makes bodies of errors."""

from google.api.httpbody_pb2 import HttpBody
from interlock.features.v1 import http_service_pb2 as pb

from services.common.call import Call
from services.features.convert.push_json import request_from_json, response_to_json
from services.features.servicer.feature_service import FeatureServicer


class FeaturesHttpServicer:
    """Speaks JSON where the transcoder would drop what it does not know."""

    def __init__(self, features: FeatureServicer) -> None:
        self._features = features

    async def PushFeatures(self, request: pb.PushFeaturesHttpRequest, call: Call) -> HttpBody:
        """POST /v1/featureViews/{view}:push."""
        asked = await request_from_json(request.feature_view, request.body.data)
        return response_to_json(await self._features.PushFeatures(asked, call))
