"""What an outside user does with the Python stubs and nothing else of ours: a job on stdin, answers on stdout.

The job is an object: `address`, `model`, `features` (an object) and `user_id`. It needs `gen/`, grpcio and
googleapis-common-protos.
"""

import json
import sys
from typing import Any

import grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2
from interlock.router.v1 import router_service_pb2 as pb
from interlock.router.v1 import router_service_pb2_grpc as rpc
from interlock.types.v1.feature_value_pb2 import FeatureValue

TIMEOUT_S = 10.0
DETAILS = "grpc-status-details-bin"


def feature(value: Any) -> FeatureValue:
    """Return a JSON value as a feature."""
    if isinstance(value, str):
        return FeatureValue(string_value=value)
    return FeatureValue(int64_value=value) if isinstance(value, int) else FeatureValue(double_value=value)


def features(values: dict[str, Any]) -> dict[str, FeatureValue]:
    """Return JSON values as features."""
    return {name: feature(value) for name, value in values.items()}


def plain(message: Any) -> Any:
    """Return a message as a JSON object."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def details(error: grpc.RpcError) -> dict[str, Any]:
    """Return an error's status and what its details say."""
    assert isinstance(error, grpc.Call)
    found: dict[str, Any] = {"code": error.code().name, "message": error.details()}
    packed = next((value for key, value in error.trailing_metadata() if key == DETAILS), b"")
    assert isinstance(packed, bytes)
    for detail in status_pb2.Status.FromString(packed).details:
        info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            found.update(reason=info.reason, domain=info.domain)
        if detail.Unpack(request):
            found["fields"] = [violation.field for violation in request.field_violations]
    return found


def refusal(stub: rpc.RouterServiceStub, request: pb.PredictRequest) -> dict[str, Any]:
    """Send a request that should be refused."""
    try:
        return {"answered": plain(stub.Predict(request, timeout=TIMEOUT_S))}
    except grpc.RpcError as error:
        return details(error)


def main() -> None:
    """Read the job, do it, write what came back."""
    job = json.load(sys.stdin)
    good = pb.PredictRequest(model=job["model"], features=features(job["features"]), user_id=job["user_id"])
    row = pb.PredictRow(features=good.features, user_id=job["user_id"])
    misspelt = pb.PredictRequest(model=job["model"], features={**good.features, "no_such_feature": feature(1)})
    with grpc.insecure_channel(job["address"]) as channel:
        stub = rpc.RouterServiceStub(channel)
        rows = pb.PredictRowsRequest(model=job["model"], rows=[row, pb.PredictRow()])
        found = {
            "predict": plain(stub.Predict(good, timeout=TIMEOUT_S).prediction),
            "predict_rows": plain(stub.PredictRows(rows, timeout=TIMEOUT_S))["results"],
            "unknown_model": refusal(stub, pb.PredictRequest(model="no-such-model", features=good.features)),
            "unknown_feature": refusal(stub, misspelt),
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
