"""mosec around ONNX Runtime: JSON or raw numbers in, JSON out, dynamic batching.

`RIVAL_MODELS='name=FILE ...' mosec_server.py --port N`: a model at POST /name, RIVAL_PROCESSES (1) processes each.
"""

import json
import os

import numpy as np
import onnxruntime
from mosec import Runtime, Server, Worker


class Model(Worker):
    def __init__(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = os.environ["RIVAL_MODEL"]
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._shape = self._session.get_inputs()[0].shape[1:]

    def deserialize(self, data):
        if data[:1] == b"{":
            return np.array(json.loads(data)["x"], np.float32)
        # A JSON object cannot begin so: the load puts a zero byte before raw numbers.
        return np.frombuffer(data[1:], np.float32).reshape(self._shape)

    def forward(self, data):
        (values,) = self._session.run(None, {"x": np.array(data)})
        return [{"y": row} for row in values.tolist()]


def runtime(path):
    count = int(os.environ.get("RIVAL_PROCESSES", "1"))
    return Runtime(Model, num=count, max_batch_size=64, max_wait_time=2, env=[{"RIVAL_MODEL": path}] * count)


if __name__ == "__main__":
    server = Server()
    models = dict(one.split("=") for one in os.environ["RIVAL_MODELS"].split())
    server.register_runtime({f"/{name}": [runtime(path)] for name, path in models.items()})
    server.run()
