"""Python-based backend `tensorrt`: serves `<version>/model.plan` where Triton's own TensorRT backend is not installed.

It needs an NVIDIA GPU and the package `tensorrt` (or a part of it with the runtime) of exactly the version that built
the plan, beside Triton's stub. What it lacks, it says in a sentence when the model is loaded: a plan of another version
or for another GPU, and a machine without a GPU, are refused before TensorRT touches the plan.

Runs inside Triton's stub process, in the server's own virtual environment: nothing of pathserve is imported here.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np

# Triton reaches this file through a link, beside which there is neither `common` nor `cuda_driver`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import batched
import cuda_driver

HERE = Path(__file__).resolve().parent
PROBE_TIMEOUT_S = 60
# Without a working driver TensorRT's runtime object ends the process when it is used or deleted: hence another process.
PROBE = """
import json, sys
import cuda_driver
try:
    gpu = cuda_driver.describe(int(sys.argv[1]))
    import tensorrt
    if tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR)) is None:
        raise cuda_driver.Refused("TensorRT's runtime does not start")
    print(json.dumps(gpu | {"tensorrt_version": tensorrt.__version__}))
except ImportError as error:
    print(json.dumps({"refused": f"the package tensorrt cannot be imported beside Triton ({error})"}))
except cuda_driver.Refused as error:
    print(json.dumps({"refused": str(error)}))
"""


class TritonPythonModel(batched.BatchedModel):
    """One instance: one execution context with its own stream and buffers on one GPU."""

    RUNTIME = "tensorrt"
    FILE = "model.plan"
    KINDS: ClassVar = {
        "TYPE_BOOL": "BOOL",
        "TYPE_UINT8": "UINT8",
        "TYPE_INT8": "INT8",
        "TYPE_INT32": "INT32",
        "TYPE_INT64": "INT64",
        "TYPE_FP16": "HALF",
        "TYPE_FP32": "FLOAT",
    }
    DTYPES: ClassVar = {
        "BOOL": np.bool_,
        "UINT8": np.uint8,
        "INT8": np.int8,
        "INT32": np.int32,
        "INT64": np.int64,
        "HALF": np.float16,
        "FLOAT": np.float32,
    }

    def initialize(self, args):
        self.gpu = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else 0
        super().initialize(args)

    def open(self, file, parameters, threads):
        check(file.name, parameters, probe(self.gpu))
        import tensorrt

        self.device = cuda_driver.Device(self.gpu)
        log = _logger(tensorrt)
        self.runtime = tensorrt.Runtime(log)
        self.engine = self.runtime.deserialize_cuda_engine(file.read_bytes())
        if self.engine is None:
            raise ValueError(f"TensorRT {tensorrt.__version__} cannot load {file.name}: {log.said()}")
        self.context = self.engine.create_execution_context()
        if self.context is None:
            raise ValueError(f"TensorRT {tensorrt.__version__} cannot make a context for {file.name}: {log.said()}")
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        given = [name for name in names if self.engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT]
        made = [name for name in names if name not in given]
        return {name: self._tensor(name) for name in given}, {name: self._tensor(name) for name in made}

    def _tensor(self, name):
        return batched.Tensor(self.engine.get_tensor_dtype(name).name, tuple(self.engine.get_tensor_shape(name)))

    def run(self, feed):
        self.device.use()
        for name, array in feed.items():
            if not self.context.set_input_shape(name, array.shape):
                raise ValueError(f"input '{name}' of the shape {list(array.shape)} is outside the plan's profile")
            self.context.set_tensor_address(name, self.device.put(name, np.ascontiguousarray(array)))
        results = []
        for name in self.outputs:
            shape = tuple(self.context.get_tensor_shape(name))
            results.append(np.empty(shape, self.DTYPES[self.engine.get_tensor_dtype(name).name]))
            self.context.set_tensor_address(name, self.device.room(name, results[-1].nbytes))
        if not self.context.execute_async_v3(self.device.stream):
            raise ValueError("the plan did not run")
        for name, array in zip(self.outputs, results, strict=True):
            self.device.get(name, array)
        self.device.wait()
        return results

    def finalize(self):
        # In this order: each holds on to the next.
        self.context = None
        self.engine = None
        self.runtime = None


def probe(gpu):
    """What this machine has for plans, found in a process of its own. A ValueError says what is missing."""
    try:
        # sys.executable is Triton's stub; PATH leads to the interpreter of the server's environment.
        ended = subprocess.run(
            ["python3", "-c", PROBE, str(gpu)], cwd=HERE, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"the search for a GPU did not end well ({type(error).__name__})") from None
    if ended.returncode < 0:
        raise ValueError(f"TensorRT's runtime crashes on this machine ({signal.Signals(-ended.returncode).name})")
    try:
        found = json.loads(ended.stdout)
    except ValueError:
        raise ValueError("the search for a GPU did not end well (no answer)") from None
    if "refused" in found:
        raise ValueError(f"a TensorRT plan cannot run here: {found['refused']}")
    return found


def check(file, parameters, found):
    """Refuse a plan of another TensorRT or another kind of GPU, by what the exporter wrote into config.pbtxt."""
    for key, built, has in (
        ("tensorrt_version", "was built by TensorRT {}", "this server has {}"),
        ("compute_capability", "was built for GPUs of compute capability {}", "this one ({name}) has {}"),
    ):
        due = parameters.get(key)
        if due is None:
            raise ValueError(f"config.pbtxt does not say the {key} of {file}: export it again where its plan is built")
        if due != found[key]:
            raise ValueError(
                f"{file} {built.format(due)}, and {has.format(found[key], name=found['name'])}: "
                "build it again for this server"
            )


def _logger(tensorrt):
    """A logger that remembers TensorRT's last error."""

    class Log(tensorrt.ILogger):
        def __init__(self):
            super().__init__()
            self.error = "it gives no reason"

        def log(self, severity, message):
            if severity in (tensorrt.ILogger.Severity.ERROR, tensorrt.ILogger.Severity.INTERNAL_ERROR):
                self.error = message

        def said(self):
            return self.error

    return Log()
