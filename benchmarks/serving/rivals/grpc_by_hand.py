"""What one writes in an afternoon: grpc.aio on uvloop, one model call for each request. `grpc_by_hand.py PORT NAME=FILE ...`."""

import asyncio
import sys

import grpc
import numpy as np
import onnxruntime
import uvloop
from inference import grpc_service_pb2 as oip
from inference import grpc_service_pb2_grpc as rpc


class Server(rpc.GRPCInferenceServiceServicer):
    def __init__(self, files):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._sessions = {
            name: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for name, path in files.items()
        }

    async def ModelInfer(self, request, context):  # noqa: N802 - the contract's name
        x = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(request.inputs[0].shape)
        (y,) = self._sessions[request.model_name].run(None, {"x": x})
        answer = oip.ModelInferResponse(
            model_name=request.model_name, model_version="1", raw_output_contents=[y.tobytes()]
        )
        answer.outputs.add(name="y", datatype="FP32", shape=y.shape)
        return answer


async def main():
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 1 << 25)])
    rpc.add_GRPCInferenceServiceServicer_to_server(Server(dict(one.split("=") for one in sys.argv[2:])), server)
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(main())
