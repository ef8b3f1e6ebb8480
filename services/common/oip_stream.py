"""The Open Inference Protocol's ModelStreamInfer in Triton's shape, the same at every service that speaks it."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Final

from google.rpc.status_pb2 import Status
from inference import grpc_service_pb2 as oip_pb

from services.common.call import Call
from services.common.stream_answers import Streams, Work

# Triton's clients send it to have a failure end the stream with its status, instead of a message that says so.
_ENDS_AT_ERROR_KEY: Final = "triton_grpc_error"
# Triton's clients read on for a request until an answer says it. Here each request has one.
_FINAL: Final = "triton_final_response"

Infer = Callable[[oip_pb.ModelInferRequest, Call], Awaitable[bytes]]


def infer_stream(
    streams: Streams, requests: AsyncIterator[oip_pb.ModelInferRequest], call: Call, infer: Infer
) -> AsyncGenerator[bytes, None]:
    """Answer each request of a stream by `infer`, which gives a ModelInferResponse in wire form.

    A failure is told in the stream as `error_message`, with the request's id, and the stream goes on.
    """

    async def answer(request: oip_pb.ModelInferRequest, part: Call) -> oip_pb.ModelStreamInferResponse:
        response = oip_pb.ModelInferResponse.FromString(await infer(request, part))
        response.parameters[_FINAL].bool_param = True
        return oip_pb.ModelStreamInferResponse(infer_response=response)

    ends_at_error = call.metadata.get(_ENDS_AT_ERROR_KEY, "").lower() == "true"
    return streams.answers(requests, call, Work(answer, None if ends_at_error else _refuse))


def _refuse(request: oip_pb.ModelInferRequest, status: Status) -> oip_pb.ModelStreamInferResponse:
    final = {_FINAL: oip_pb.InferParameter(bool_param=True)}
    response = oip_pb.ModelInferResponse(id=request.id, parameters=final)
    return oip_pb.ModelStreamInferResponse(error_message=status.message, infer_response=response)
