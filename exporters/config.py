"""config.pbtxt from typed classes, checked by Triton's own message and against the graph's real tensors.

No queue policy and no priority: each stalls Triton for 500 ms a request; the gateway queues.
"""

from dataclasses import dataclass

import onnx
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from exporters.errors import ExportError
from exporters.kinds import MAX_BATCH
from training.graphs import TensorSpec

_ELEMENT = {"UINT8": onnx.TensorProto.UINT8, "FP32": onnx.TensorProto.FLOAT}


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxRuntimeConfig:
    """A model for the backend `onnxruntime` on CPUs: `instances` processes with one thread each."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int = MAX_BATCH
    instances: int = 2

    def text(self) -> str:
        return "\n".join(
            (
                f'name: "{self.name}"',
                'backend: "onnxruntime"',
                f"max_batch_size: {self.max_batch_size}",
                *_tensors("input", self.inputs),
                *_tensors("output", self.outputs),
                f"instance_group [ {{ count: {self.instances} kind: KIND_CPU }} ]",
                "dynamic_batching { }",
                'parameters { key: "intra_op_thread_count" value { string_value: "1" } }',
                "",
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleConfig:
    """A chain of models; `links` are the tensors between them, one less than steps."""

    name: str
    steps: tuple[str, ...]
    links: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int = MAX_BATCH

    def text(self) -> str:
        tensors = (self.inputs[0].name, *self.links, self.outputs[0].name)
        steps = [
            f'    {{ model_name: "{step}" model_version: -1 '
            f'input_map {{ key: "{tensors[place]}" value: "{tensors[place]}" }} '
            f'output_map {{ key: "{tensors[place + 1]}" value: "{tensors[place + 1]}" }} }}'
            for place, step in enumerate(self.steps)
        ]
        return "\n".join(
            (
                f'name: "{self.name}"',
                'platform: "ensemble"',
                f"max_batch_size: {self.max_batch_size}",
                *_tensors("input", self.inputs),
                *_tensors("output", self.outputs),
                "ensemble_scheduling {",
                "  step [",
                ",\n".join(steps),
                "  ]",
                "}",
                "",
            )
        )


Config = OnnxRuntimeConfig | EnsembleConfig


def _tensors(role: str, specs: tuple[TensorSpec, ...]) -> list[str]:
    return [
        f'{role} [ {{ name: "{spec.name}" data_type: TYPE_{spec.datatype} dims: {list(spec.dims)} }} ]'
        for spec in specs
    ]


def check_config(config: Config) -> None:
    """Raises ExportError where Triton's message does not take the text."""
    try:
        parsed = text_format.Parse(config.text(), model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise ExportError(f"The config.pbtxt of {config.name} is not one that Triton reads: {error}.") from None
    if parsed.name != config.name or parsed.max_batch_size != config.max_batch_size:
        raise ExportError(f"The config.pbtxt of {config.name} does not say what it was given.")


def check_against_graph(config: OnnxRuntimeConfig, model: onnx.ModelProto) -> None:
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
            dims = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
            if tensor.elem_type != _ELEMENT[spec.datatype]:
                raise ExportError(f"The {role} {spec.name} of {config.name} is not {spec.datatype} in the graph.")
            if not dims or not isinstance(dims[0], str) or tuple(dims[1:]) != spec.dims:
                raise ExportError(
                    f"The {role} {spec.name} of {config.name} has the dimensions {dims} in the graph; "
                    f"the config says a free batch and {list(spec.dims)}."
                )
