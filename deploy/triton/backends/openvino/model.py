"""Python-based backend `openvino`: serves `<version>/model.onnx`, or `model.xml` with `model.bin`, on CPUs.

config.pbtxt names the file as `default_model_filename`: without it Triton itself fills in `model.xml`. Its parameters
are `INFERENCE_PRECISION_HINT` (`f32` where it is absent) and `INFERENCE_NUM_THREADS` (1), OpenVINO's own names.

Runs inside Triton's stub process, in the server's own virtual environment: nothing of pathserve is imported here.
"""

import sys
from pathlib import Path
from typing import ClassVar

# Triton reaches this file through a link, beside which there is no `common`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))
import batched

try:
    import openvino
except ImportError:
    raise ImportError("openvino is not installed beside the embedded Triton: run `make setup` again") from None

PRECISION = "INFERENCE_PRECISION_HINT"
PRECISIONS = {"f32": openvino.Type.f32, "bf16": openvino.Type.bf16, "f16": openvino.Type.f16}


class TritonPythonModel(batched.BatchedModel):
    """One instance: one compiled model with one stream and its own threads."""

    RUNTIME = "openvino"
    FILE = "model.xml"
    THREADS = "INFERENCE_NUM_THREADS"
    KINDS: ClassVar = {
        "TYPE_BOOL": "boolean",
        "TYPE_UINT8": "u8",
        "TYPE_UINT16": "u16",
        "TYPE_UINT32": "u32",
        "TYPE_UINT64": "u64",
        "TYPE_INT8": "i8",
        "TYPE_INT16": "i16",
        "TYPE_INT32": "i32",
        "TYPE_INT64": "i64",
        "TYPE_FP16": "f16",
        "TYPE_FP32": "f32",
        "TYPE_FP64": "f64",
    }

    def open(self, file, parameters, threads):
        precision = parameters.get(PRECISION, "f32")
        if precision not in PRECISIONS:
            raise ValueError(f"{PRECISION} is '{precision}' in config.pbtxt; it can be {', '.join(PRECISIONS)}")
        try:
            core = openvino.Core()
            compiled = core.compile_model(
                core.read_model(file),
                "CPU",
                {
                    # Left alone, OpenVINO computes in bfloat16 wherever the CPU can.
                    PRECISION: precision,
                    # No quantisation of activations behind the exporter's back.
                    "EXECUTION_MODE_HINT": "ACCURACY",
                    "INFERENCE_NUM_THREADS": threads,
                    "NUM_STREAMS": 1,
                    # Each instance is a process: all of them would pin their threads to the same first cores.
                    "ENABLE_CPU_PINNING": False,
                },
            )
        except RuntimeError as error:
            raise ValueError(f"openvino cannot open {file.name}: {_sentence(error)}") from None
        if compiled.get_property(PRECISION) != PRECISIONS[precision]:
            raise ValueError(f"{PRECISION} is '{precision}' in config.pbtxt, and this CPU does not compute in it")
        self.request = compiled.create_infer_request()
        return _tensors(compiled.inputs, self.inputs), _tensors(compiled.outputs, self.outputs)

    def run(self, feed):
        try:
            results = self.request.infer(feed, share_inputs=True)
        except RuntimeError as error:
            raise ValueError(_sentence(error)) from None
        return [results[name] for name in self.outputs]


def _tensors(ports, declared):
    """A port has one name or several: the one that config.pbtxt uses counts."""
    found = {}
    for port in ports:
        names = port.get_names()
        name = next((name for name in declared if name in names), min(names, default="(no name)"))
        shape = tuple(size.get_length() if size.is_static else -1 for size in port.get_partial_shape())
        found[name] = batched.Tensor(port.get_element_type().get_type_name(), shape)
    return found


def _sentence(error):
    """OpenVINO's own sentence: the last line below the places in its source that the error came through."""
    return str(error).strip().splitlines()[-1]
