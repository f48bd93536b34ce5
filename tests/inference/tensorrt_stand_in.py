"""The real TensorRT backend in a real Triton, on a machine without a GPU: what lies below it is stood in for.

A plan is here the 3 × 8 matrix of `models.write_encoder` as raw float32; "device" memory is the process's own. Used as
a backend's `model.py` by test_tensorrt_backend.py; the real one runs unchanged.
"""

import ctypes
import importlib.util
import sys
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np

BACKEND = Path(__file__).resolve().parents[2] / "deploy" / "triton" / "backends" / "tensorrt" / "model.py"
SIDE, WIDTH, PROFILE_MOST = 64, 8, 16


class HostDriver:
    """The CUDA driver's calls on host memory; 0 = success, as there."""

    def __init__(self):
        self.memory = {}

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *arguments: 0

    def cuMemAlloc_v2(self, pointer, size):  # noqa: N802 (its own name)
        buffer = ctypes.create_string_buffer(size.value)
        pointer._obj.value = ctypes.addressof(buffer)
        self.memory[pointer._obj.value] = buffer
        return 0

    def cuMemFree_v2(self, address):  # noqa: N802 (its own name)
        del self.memory[address.value]
        return 0

    def cuStreamCreate(self, stream, flags):  # noqa: N802 (its own name)
        stream._obj.value = 77
        return 0

    def cuMemcpyHtoDAsync_v2(self, to, source, size, stream):  # noqa: N802 (its own name)
        ctypes.memmove(to.value, source.value, size.value)
        return 0

    cuMemcpyDtoHAsync_v2 = cuMemcpyHtoDAsync_v2


class TensorIOMode(Enum):
    INPUT = 1
    OUTPUT = 2


class ILogger:
    Severity = SimpleNamespace(ERROR="error", INTERNAL_ERROR="internal")


class Runtime:
    def __init__(self, log):
        self.log = log

    def deserialize_cuda_engine(self, plan):
        if len(plan) != 4 * 3 * WIDTH:
            self.log.log("error", "Serialization assertion stdVersionRead == serializationVersion failed.")
            return None
        return Engine(np.frombuffer(plan, np.float32).reshape(3, WIDTH))


class Engine:
    num_io_tensors = 2

    def __init__(self, weights):
        self.weights = weights

    def get_tensor_name(self, index):
        return ("image", "embedding")[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name == "image" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name="UINT8" if name == "image" else "FLOAT")

    def get_tensor_shape(self, name):
        return (-1, SIDE, SIDE, 3) if name == "image" else (-1, WIDTH)

    def create_execution_context(self):
        return Context(self)


class Context:
    def __init__(self, engine):
        self.engine, self.addresses, self.rows = engine, {}, 0

    def set_input_shape(self, name, shape):
        self.rows = shape[0]
        return self.rows <= PROFILE_MOST

    def get_tensor_shape(self, name):
        return (self.rows, WIDTH)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        size = self.rows * SIDE * SIDE * 3
        image = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.addresses["image"]))
        mean = image.reshape(self.rows, -1, 3).mean(1, dtype=np.float64).astype(np.float32)
        answer = np.ctypeslib.as_array((ctypes.c_float * (self.rows * WIDTH)).from_address(self.addresses["embedding"]))
        answer[:] = (mean @ self.engine.weights).ravel()
        return stream == 77


def _load():
    tensorrt = ModuleType("tensorrt")
    tensorrt.__version__ = "11.4.0.106"
    for item in (ILogger, Runtime, TensorIOMode):
        setattr(tensorrt, item.__name__, item)
    sys.modules["tensorrt"] = tensorrt
    spec = importlib.util.spec_from_file_location("tensorrt_backend", BACKEND)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    driver = HostDriver()
    module.cuda_driver.open_driver = lambda: driver
    module.probe = lambda gpu: {
        "name": "Stand-in GPU",
        "compute_capability": "9.0",
        "tensorrt_version": tensorrt.__version__,
    }
    return module


TritonPythonModel = _load().TritonPythonModel
