"""mosec around ONNX Runtime: JSON in, JSON out, dynamic batching. `mosec_server.py MODEL.onnx --port N`."""

import os

import numpy as np
import onnxruntime
from mosec import Server, Worker


class Model(Worker):
    def __init__(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = os.environ["RIVAL_MODEL"]
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(self, data):
        (values,) = self._session.run(None, {"x": np.array([one["x"] for one in data], np.float32)})
        return [{"y": row} for row in values.tolist()]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Model, num=1, max_batch_size=64, max_wait_time=2)
    server.run()
