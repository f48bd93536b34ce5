"""Python-based backend `onnxruntime`: serves `<version>/model.onnx` of a model folder that holds no code of its own.

Triton looks for `libtriton_onnxruntime.so` first and for this file second, so the same model folder is served by the
C++ backend of NVIDIA's container, and by this one where only the Python backend is installed.

Runs inside Triton's stub process, in the server's own virtual environment: nothing of pathserve is imported here.
"""

import sys
from pathlib import Path
from typing import ClassVar

# Triton reaches this file through a link, beside which there is no `common`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))
import batched
import onnxruntime


class TritonPythonModel(batched.BatchedModel):
    """One instance: one ONNX Runtime session with its own threads."""

    RUNTIME = "onnxruntime"
    FILE = "model.onnx"
    THREADS = "intra_op_thread_count"
    KINDS: ClassVar = {
        "TYPE_BOOL": "tensor(bool)",
        "TYPE_UINT8": "tensor(uint8)",
        "TYPE_UINT16": "tensor(uint16)",
        "TYPE_UINT32": "tensor(uint32)",
        "TYPE_UINT64": "tensor(uint64)",
        "TYPE_INT8": "tensor(int8)",
        "TYPE_INT16": "tensor(int16)",
        "TYPE_INT32": "tensor(int32)",
        "TYPE_INT64": "tensor(int64)",
        "TYPE_FP16": "tensor(float16)",
        "TYPE_FP32": "tensor(float)",
        "TYPE_FP64": "tensor(double)",
    }

    def open(self, file, parameters, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A spinning pool burns the cores that decode the next tiles.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return _tensors(self.session.get_inputs()), _tensors(self.session.get_outputs())

    def run(self, feed):
        return self.session.run(self.outputs, feed)


def _tensors(nodes):
    return {
        node.name: batched.Tensor(node.type, tuple(size if isinstance(size, int) else -1 for size in node.shape))
        for node in nodes
    }
