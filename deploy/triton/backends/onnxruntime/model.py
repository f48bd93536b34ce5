"""Python-based backend `onnxruntime`: serves `<version>/model.onnx` of a model folder that holds no code of its own.

Triton looks for `libtriton_onnxruntime.so` first and for this file second, so the same model folder is served by the
C++ backend of NVIDIA's container, and by this one where only the Python backend is installed.

Runs inside Triton's stub process, in the server's own virtual environment: nothing of pathserve is imported here.
"""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np

if int(np.__version__.split(".")[0]) >= 2:
    # Triton 2.51's stub hands over wrong pixels and empty answers with numpy 2, without any error.
    raise ImportError(f"the onnxruntime backend needs numpy 1 beside Triton's stub, found numpy {np.__version__}")

import onnxruntime
import triton_python_backend_utils as pb_utils

ONNX_TYPES = {
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


class TritonPythonModel:
    """One instance: one ONNX Runtime session with its own threads."""

    def initialize(self, args):
        """Open the model and compare it with config.pbtxt; the text of a refusal reaches the caller of `load`."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = _parameter(config, "intra_op_thread_count", 1)
        options.inter_op_num_threads = 1
        # A spinning pool burns the cores that decode the next tiles.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            str(folder / (config.get("default_model_filename") or "model.onnx")),
            options,
            providers=["CPUExecutionProvider"],
        )
        self.batched = config["max_batch_size"] > 0
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        declared = {node.name: node for node in self.session.get_inputs()}
        if set(self.inputs) != set(declared):
            raise ValueError(f"config.pbtxt names the inputs {sorted(self.inputs)}, the model has {sorted(declared)}")
        for tensor in config["input"]:
            _compare("input", tensor, declared[tensor["name"]], self.batched)
        declared = {node.name: node for node in self.session.get_outputs()}
        if missing := sorted(set(self.outputs) - set(declared)):
            raise ValueError(f"config.pbtxt names the outputs {missing}, which the model does not have")
        for tensor in config["output"]:
            _compare("output", tensor, declared[tensor["name"]], self.batched)

    def execute(self, requests):
        """One response per request, in order. Requests of equal shape are run as one batch."""
        responses = [None] * len(requests)
        feeds = {}
        groups = defaultdict(list)
        for index, request in enumerate(requests):
            if request.is_cancelled():
                responses[index] = _failure("the request was cancelled", pb_utils.TritonError.CANCELLED)
                continue
            try:
                feeds[index] = {name: _array(request, name) for name in self.inputs}
                groups[self._shape_key(index, feeds[index])].append(index)
            except ValueError as error:
                responses[index] = _failure(str(error), pb_utils.TritonError.INVALID_ARG)
        for group in groups.values():
            self._answer(group, requests, feeds, responses)
        return responses

    def _shape_key(self, index, feed):
        if not self.batched:
            return index
        rows = {len(array) for array in feed.values()}
        if len(rows) != 1 or 0 in rows:
            raise ValueError("the inputs of one request need the same, non-zero number of rows")
        return tuple(array.shape[1:] for array in feed.values())

    def _answer(self, group, requests, feeds, responses):
        try:
            whole = (
                {name: np.concatenate([feeds[index][name] for index in group]) for name in self.inputs}
                if len(group) > 1
                else feeds[group[0]]
            )
            results = dict(zip(self.outputs, self.session.run(self.outputs, whole), strict=True))
        except Exception as error:
            if len(group) > 1:
                # One bad request spoils only itself: ask each alone.
                for index in group:
                    self._answer([index], requests, feeds, responses)
            else:
                responses[group[0]] = _failure(f"onnxruntime: {error}", pb_utils.TritonError.INTERNAL)
            return
        start = 0
        for index in group:
            rows = len(feeds[index][self.inputs[0]]) if self.batched else None
            wanted = requests[index].requested_output_names()
            responses[index] = pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(name, np.ascontiguousarray(array if rows is None else array[start : start + rows]))
                    for name, array in results.items()
                    if name in wanted
                ]
            )
            start += rows or 0

    def finalize(self):
        self.session = None


def _parameter(config, name, default):
    value = config.get("parameters", {}).get(name, {}).get("string_value", "")
    return int(value) if value else default


def _array(request, name):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        raise ValueError(f"input '{name}' is missing")
    return tensor.as_numpy()


def _failure(text, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))


def _compare(role, tensor, node, batched):
    """Refuse a config.pbtxt whose data type or dims are not the model's. -1 and symbolic sizes match anything."""
    name, kind = tensor["name"], tensor["data_type"]
    if ONNX_TYPES.get(kind) != node.type:
        raise ValueError(f"{role} '{name}' is {kind} in config.pbtxt and {node.type} in the model")
    dims = [int(size) for size in tensor["dims"]]
    shape = node.shape[1:] if batched else node.shape
    fits = len(dims) == len(shape) and all(
        size == -1 or not isinstance(known, int) or known == size for size, known in zip(dims, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{role} '{name}' has the dims {dims} in config.pbtxt and {list(shape)} in the model")
