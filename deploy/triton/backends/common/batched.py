"""What the Python-based backends share: a model of numpy arrays behind Triton's requests.

Each backend's `model.py` finds this module by its own resolved place, since Triton reaches the backend through a link:
`sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))`. It subclasses `BatchedModel` with what its
runtime does differently: `open` a file and `run` a batch.

Runs inside Triton's stub process, in the server's own virtual environment: nothing of pathserve is imported here.
"""

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

if int(np.__version__.split(".")[0]) >= 2:
    # Triton 2.51's stub hands over wrong pixels and empty answers with numpy 2, without any error.
    raise ImportError(f"this backend needs numpy 1 beside Triton's stub, found numpy {np.__version__}")

import triton_python_backend_utils as pb_utils


class Tensor(NamedTuple):
    """An input or output as the model's file declares it: `kind` in the runtime's own words; -1 for a free size."""

    kind: str
    shape: tuple[int, ...]


class BatchedModel:
    """One instance of a model. Requests of equal shape are run as one batch; one bad request spoils only itself."""

    RUNTIME = ""  # the name in errors
    FILE = ""  # the artefact where config.pbtxt has no default_model_filename
    KINDS: ClassVar = {}  # Triton's data types -> the runtime's own words for them
    THREADS = ""  # the parameter of config.pbtxt that holds an instance's number of threads

    def open(self, file, parameters, threads):
        """Open an artefact with the parameters {key: text} of config.pbtxt and a number of threads.

        Returns its inputs and its outputs, each {name: Tensor}. A ValueError's text reaches the caller of `load`.
        """
        raise NotImplementedError

    def run(self, feed):
        """The arrays of `self.outputs`, in that order, for {name: array} of all inputs. May raise anything."""
        raise NotImplementedError

    def initialize(self, args):
        """Open the model and compare it with config.pbtxt; the text of a refusal reaches the caller of `load`."""
        config = json.loads(args["model_config"])
        file = Path(args["model_repository"]) / args["model_version"]
        file /= config.get("default_model_filename") or self.FILE
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        self.batched = config["max_batch_size"] > 0
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        if not file.is_file():
            raise ValueError(f"{file.name} is not in the version's folder")
        inputs, outputs = self.open(file, parameters, _threads(config, parameters.get(self.THREADS)))
        if set(self.inputs) != set(inputs):
            raise ValueError(f"config.pbtxt names the inputs {sorted(self.inputs)}, the model has {sorted(inputs)}")
        if missing := sorted(set(self.outputs) - set(outputs)):
            raise ValueError(f"config.pbtxt names the outputs {missing}, which the model does not have")
        for role, found in (("input", inputs), ("output", outputs)):
            for declared in config[role]:
                self._compare(role, declared, found[declared["name"]])

    def _compare(self, role, declared, found):
        """Refuse a config.pbtxt whose data type or dims are not the model's; a free size matches anything."""
        name, kind = declared["name"], declared["data_type"]
        if self.KINDS.get(kind) != found.kind:
            raise ValueError(f"{role} '{name}' is {kind} in config.pbtxt and {found.kind} in the model")
        if self.batched and found.shape[:1] != (-1,):
            raise ValueError(
                f"{role} '{name}' has no free batch axis in the model; config.pbtxt needs max_batch_size 0"
            )
        dims = tuple(int(size) for size in declared["dims"])
        shape = found.shape[1:] if self.batched else found.shape
        if len(dims) != len(shape) or any(
            size != known and -1 not in (size, known) for size, known in zip(dims, shape, strict=True)
        ):
            raise ValueError(
                f"{role} '{name}' has the dims {list(dims)} in config.pbtxt and {list(shape)} in the model"
            )

    def execute(self, requests):
        """One response per request, in order."""
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
            results = dict(zip(self.outputs, self.run(whole), strict=True))
        except Exception as error:
            if len(group) > 1:
                # One bad request spoils only itself: ask each alone.
                for index in group:
                    self._answer([index], requests, feeds, responses)
            else:
                responses[group[0]] = _failure(f"{self.RUNTIME}: {error}", pb_utils.TritonError.INTERNAL)
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


def _threads(config, asked):
    """The threads of one instance: as asked (default 1), but all instances together no more than there are cores."""
    instances = sum(group["count"] for group in config["instance_group"])
    return max(1, min(int(asked or 1), len(os.sched_getaffinity(0)) // instances))


def _array(request, name):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        raise ValueError(f"input '{name}' is missing")
    return tensor.as_numpy()


def _failure(text, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))
