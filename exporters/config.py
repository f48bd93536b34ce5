"""config.pbtxt from typed classes, checked by Triton's own message and against the graph's real tensors.

No queue policy and no priority: each stalls Triton for 500 ms a request; the gateway queues.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import onnx
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from exporters.errors import ExportError
from gateway.inference.contract import Contract
from training.graphs import Dim, TensorSpec

_ELEMENT = {
    "BOOL": onnx.TensorProto.BOOL,
    "FP32": onnx.TensorProto.FLOAT,
    "INT32": onnx.TensorProto.INT32,
    "INT64": onnx.TensorProto.INT64,
    "UINT8": onnx.TensorProto.UINT8,
}


class Config(Protocol):
    """A model's configuration; `name` is its folder's name, `max_batch_size` 0 means that there is no batch axis."""

    @property
    def name(self) -> str: ...
    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def max_batch_size(self) -> int: ...

    def text(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _CpuConfig:
    """What models on CPUs say alike: `instances` processes; `batch` None = no batch axis."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: Dim | None
    instances: int = 2

    @property
    def max_batch_size(self) -> int:
        return self.batch.max if self.batch else 0

    def _lines(self) -> list[str]:
        """Tensors, instances, and up to what batch requests are joined: the usual one.

        Joined up to the greatest, two requests of the usual 32 tiles became one of 64, whose activations a process
        keeps room for: 946 MB instead of 546 MB, and no image was answered faster.
        """
        joined = [f"dynamic_batching {{ preferred_batch_size: [ {self.batch.opt} ] }}"] if self.batch else []
        return [*tensors(self), f"instance_group [ {{ count: {self.instances} kind: KIND_CPU }} ]", *joined]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxRuntimeConfig(_CpuConfig):
    """A model for the backend `onnxruntime` on CPUs: `instances` processes with one thread each."""

    def text(self) -> str:
        return _text(
            f'name: "{self.name}"',
            'backend: "onnxruntime"',
            *self._lines(),
            parameter("intra_op_thread_count", "1"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVinoConfig(_CpuConfig):
    """A model for the backend `openvino` on CPUs: `instances` processes with `threads` threads each.

    `file` is an ONNX file, or an IR whose weights lie beside it. The precision is always said: OpenVINO's own default
    is bf16 on processors that have it.
    """

    file: Literal["model.onnx", "model.xml"]
    precision: Literal["f32", "bf16"]
    threads: int = 1

    def text(self) -> str:
        return _text(
            f'name: "{self.name}"',
            'backend: "openvino"',
            f'default_model_filename: "{self.file}"',
            *self._lines(),
            parameter("INFERENCE_PRECISION_HINT", self.precision),
            parameter("INFERENCE_NUM_THREADS", str(self.threads)),
        )


@dataclass(frozen=True, slots=True)
class Step:
    """A model of an ensemble, by its folder, with the names of its tensors."""

    folder: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleConfig:
    """Models in order; a step's inputs are the ensemble's, or outputs of the same name of an earlier step."""

    name: str
    steps: tuple[Step, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int

    def text(self) -> str:
        steps = [
            " ".join(
                (
                    f'    {{ model_name: "{step.folder}" model_version: -1',
                    *(f'input_map {{ key: "{name}" value: "{name}" }}' for name in step.inputs),
                    *(f'output_map {{ key: "{name}" value: "{name}" }}' for name in step.outputs),
                    "}",
                )
            )
            for step in self.steps
        ]
        return _text(
            f'name: "{self.name}"',
            'platform: "ensemble"',
            *tensors(self),
            "ensemble_scheduling {",
            "  step [",
            ",\n".join(steps),
            "  ]",
            "}",
        )


def joined(name: str, models: Sequence[Contract]) -> EnsembleConfig:
    """Models in order, joined by the names of their tensors.

    What no earlier model gives is an input of the ensemble; its outputs are the last model's. Raises ExportError where
    tensors of one name are not alike, or where batches of one model are none for another.
    """
    if len({model.max_batch_size > 0 for model in models}) > 1:
        raise ExportError(f"Of {', '.join(model.name for model in models)} some take batches and some do not.")
    inputs: dict[str, TensorSpec] = {}
    known: dict[str, TensorSpec] = {}
    for model in models:
        for role, specs in (("takes", model.inputs), ("gives", model.outputs)):
            for each in specs:
                spec = TensorSpec(each.name, each.datatype, each.dims)
                other = known.setdefault(spec.name, spec)
                if other != spec:
                    raise ExportError(
                        f"{model.name} {role} {spec.name} as {spec.datatype} {list(spec.dims)}, and a model before it "
                        f"{other.datatype} {list(other.dims)}, so they cannot be joined."
                    )
                if role == "takes" and other is spec:
                    inputs[spec.name] = spec
    config = EnsembleConfig(
        name=name,
        steps=tuple(
            Step(model.name, tuple(spec.name for spec in model.inputs), tuple(spec.name for spec in model.outputs))
            for model in models
        ),
        inputs=tuple(inputs.values()),
        outputs=tuple(known[spec.name] for spec in models[-1].outputs),
        max_batch_size=min(model.max_batch_size for model in models),
    )
    check_config(config)
    return config


def tensors(config: Config) -> list[str]:
    """The greatest batch, the inputs and the outputs."""
    return [
        f"max_batch_size: {config.max_batch_size}",
        *(
            f'{role} [ {{ name: "{spec.name}" data_type: TYPE_{spec.datatype} dims: {list(spec.shape)} }} ]'
            for role, specs in (("input", config.inputs), ("output", config.outputs))
            for spec in specs
        ),
    ]


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def _text(*lines: str) -> str:
    return "\n".join((*lines, ""))


def check_config(config: Config) -> None:
    """Raises ExportError where Triton's message does not take the text, or where an ensemble's tensors do not join."""
    try:
        parsed = text_format.Parse(config.text(), model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise ExportError(f"The config.pbtxt of {config.name} is not one that Triton reads: {error}.") from None
    if parsed.name != config.name or parsed.max_batch_size != config.max_batch_size:
        raise ExportError(f"The config.pbtxt of {config.name} does not say what it was given.")
    if isinstance(config, EnsembleConfig):
        _check_steps(config)


def _check_steps(config: EnsembleConfig) -> None:
    known, used = {spec.name for spec in config.inputs}, set[str]()
    for step in config.steps:
        if missing := sorted(set(step.inputs) - known):
            raise ExportError(f"In {config.name}, nothing gives {', '.join(missing)} to {step.folder}.")
        if twice := sorted(set(step.outputs) & known):
            raise ExportError(f"In {config.name}, {step.folder} gives {', '.join(twice)}, which is there already.")
        known |= set(step.outputs)
        used |= set(step.inputs)
    if missing := sorted({spec.name for spec in config.outputs} - known):
        raise ExportError(f"In {config.name}, no step gives {', '.join(missing)}.")
    if idle := sorted({spec.name for spec in config.inputs} - used):
        raise ExportError(f"In {config.name}, no step takes {', '.join(idle)}.")


def check_against_graph(config: Config, model: onnx.ModelProto) -> None:
    """Raises ExportError where a name, data type or dimension of the config is not the graph's, naming the first."""
    for role, specs, values in (
        ("input", config.inputs, model.graph.input),
        ("output", config.outputs, model.graph.output),
    ):
        found = {value.name: value.type.tensor_type for value in values}
        if sorted(found) != sorted(spec.name for spec in specs):
            raise ExportError(
                f"The {role}s of {config.name} are {sorted(found)} in the graph, not those of the config."
            )
        for spec in specs:
            tensor = found[spec.name]
            if tensor.elem_type != _ELEMENT.get(spec.datatype):
                raise ExportError(f"The {role} {spec.name} of {config.name} is not {spec.datatype} in the graph.")
            dims = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
            batch = [-1] if config.max_batch_size else []
            if [-1 if isinstance(dim, str) else dim for dim in dims] != [*batch, *spec.shape]:
                raise ExportError(
                    f"The {role} {spec.name} of {config.name} has the dimensions {dims} in the graph; the config says "
                    f"{'a free batch and ' if batch else ''}{[d.name if isinstance(d, Dim) else d for d in spec.dims]}."
                )
