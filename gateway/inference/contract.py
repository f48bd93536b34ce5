"""What a model takes and gives, as its config.pbtxt says; read with Triton's own message, strictly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import triton_to_np_dtype

from gateway.inference.names import split_folder
from gateway.operations.errors import InferenceError, ModelRefused

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor. `datatype` is Triton's name (UINT8, FP32, …); `dims` lack the batch axis where the model batches.

    A dim of -1 takes any size: the tiles of a bag, the length of a text.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = np.dtype(triton_to_np_dtype(self.datatype))
        return dtype


@dataclass(frozen=True, slots=True)
class Contract:
    """Inputs and outputs of one model. `max_batch_size` 0 = no batch axis. `steps` names an ensemble's models.

    `instances` counts the model's execution instances (1 for an ensemble: its steps have their own).
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    instances: int
    steps: tuple[str, ...]
    artefact: str

    def check(self, batch: Mapping[str, Array]) -> None:
        """Raise InferenceError where a batch does not fit by names, data types, dims, or its number of rows."""
        if batch.keys() != {spec.name for spec in self.inputs}:
            raise InferenceError(f"The model {self.name} takes the inputs {_names(self.inputs)}, not {sorted(batch)}.")
        rows = set()
        for spec in self.inputs:
            array = batch[spec.name]
            shape = array.shape
            if self.max_batch_size:
                rows.update(shape[:1])
                shape = shape[1:]
            wanted = ", ".join(
                [*(["B"] if self.max_batch_size else []), *("any" if dim == -1 else str(dim) for dim in spec.dims)]
            )
            if array.dtype != spec.dtype or not _fits(shape, spec.dims):
                raise InferenceError(
                    f"The input {spec.name} of the model {self.name} is {spec.datatype} ({wanted}), not {array.dtype} "
                    f"({', '.join(map(str, array.shape))})."
                )
        if self.max_batch_size and (len(rows) != 1 or not 1 <= min(rows) <= self.max_batch_size):
            raise InferenceError(
                f"The model {self.name} takes batches of 1 to {self.max_batch_size} rows, the same for each input, not "
                f"{sorted(rows)}."
            )


def parse_contract(name: str, text: str) -> Contract:
    """The contract in the text of a config.pbtxt.

    Raises ModelRefused for text that is no model configuration, another model's name, a missing instance count, and for
    the fields that stall Triton for 500 ms a request (queue policies and priorities) or pin one host's runtime.
    """
    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise ModelRefused(f"The model {name} is refused: its config.pbtxt cannot be read ({error}).") from None
    ensemble = config.platform == "ensemble"
    _refuse_traps(name, config, ensemble)
    return Contract(
        name=name,
        inputs=_specs(config.input),
        outputs=_specs(config.output),
        max_batch_size=config.max_batch_size,
        instances=1 if ensemble else sum(group.count for group in config.instance_group),
        steps=tuple(dict.fromkeys(step.model_name for step in config.ensemble_scheduling.step)),
        artefact=config.default_model_filename or _usual_artefact(config),
    )


def _refuse_traps(name: str, config: Any, ensemble: bool) -> None:
    batching = config.dynamic_batching
    stalls = [
        field
        for field, value in (
            ("priority_levels", batching.priority_levels),
            ("default_priority_level", batching.default_priority_level),
            ("priority_queue_policy", batching.priority_queue_policy),
            ("default_queue_policy", batching.HasField("default_queue_policy")),
        )
        if value
    ]
    problems = {
        f"it names itself {config.name!r}": config.name != name,
        f"{', '.join(stalls)} in dynamic_batching stalls Triton (the gateway queues and prioritises)": bool(stalls),
        "`runtime` pins one kind of host": bool(config.runtime),
        "version_policy serves other versions than the folder's": config.HasField("version_policy"),
        "it names no inputs or outputs": not (config.input and config.output),
        "each instance_group needs a count": not ensemble
        and (not config.instance_group or any(group.count < 1 for group in config.instance_group)),
        "an ensemble needs steps": ensemble and not config.ensemble_scheduling.step,
        "a step is no name of a model folder": any(
            split_folder(step.model_name) is None for step in config.ensemble_scheduling.step
        ),
    }
    for problem, found in problems.items():
        if found:
            raise ModelRefused(f"The model {name} is refused: in its config.pbtxt, {problem}. Export it again.")


def _usual_artefact(config: Any) -> str:
    """The file that Triton's core takes where the config names none."""
    if config.platform == "tensorrt_plan" or config.backend == "tensorrt":
        return "model.plan"
    return "model.xml" if config.backend == "openvino" else "model.onnx"


def _specs(tensors: Any) -> tuple[TensorSpec, ...]:
    names = model_config_pb2.DataType.Name
    return tuple(TensorSpec(t.name, _datatype(names(t.data_type)), tuple(t.dims)) for t in tensors)


def _datatype(name: str) -> str:
    plain = name.removeprefix("TYPE_")
    return "BYTES" if plain == "STRING" else plain


def _fits(shape: Sequence[int], dims: Sequence[int]) -> bool:
    return len(shape) == len(dims) and all(dim in (-1, size) for size, dim in zip(shape, dims, strict=True))


def _names(specs: Sequence[TensorSpec]) -> list[str]:
    return sorted(spec.name for spec in specs)
