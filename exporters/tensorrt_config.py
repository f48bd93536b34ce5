"""config.pbtxt of a TensorRT engine: one instance a GPU, warmed up at both ends of its optimisation profile."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from exporters.config import check_config, parameter, tensors
from exporters.errors import ExportError
from training.graphs import TensorSpec

Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Per input its least, usual and greatest shape, the batch first: an optimisation profile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRtConfig:
    """A model for TensorRT: Triton's own backend, or the Python-based one of the same name.

    `built` are facts of the plan that a server of another kind is refused by (`tensorrt_version`,
    `compute_capability`); empty where there is no plan yet.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    profile: Shapes
    built: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        lines = (
            f'name: "{self.name}"',
            'platform: "tensorrt_plan"',
            *tensors(self),
            'instance_group [ { count: 1 kind: KIND_GPU profile: [ "0" ] } ]',
            *(["dynamic_batching { }"] if self.max_batch_size else []),
            *(self._warmup(name, place) for place, name in ((0, "least"), (2, "greatest"))),
            *(parameter(key, value) for key, value in self.built.items()),
        )
        return "\n".join((*lines, ""))

    def _warmup(self, name: str, place: int) -> str:
        """A first request at one end of the profile: no patient waits for a kernel that is loaded late."""
        batch, inputs = 1, []
        for spec in self.inputs:
            shape = list(self.profile[spec.name][place])
            if self.max_batch_size:
                batch = shape.pop(0)
            data = "random_data" if spec.datatype == "UINT8" else "zero_data"
            value = f"data_type: TYPE_{spec.datatype} dims: {shape} {data}: true"
            inputs.append(f'inputs {{ key: "{spec.name}" value {{ {value} }} }}')
        return f'model_warmup [ {{ name: "{name}" batch_size: {batch} {" ".join(inputs)} }} ]'


def check_tensorrt_config(config: TensorRtConfig) -> None:
    """Raises ExportError where Triton does not read the text, or where the profile does not hold what it promises."""
    for spec in config.inputs:
        if spec.name not in config.profile:
            raise ExportError(f"The optimisation profile of {config.name} lacks the input {spec.name}.")
        greatest = config.profile[spec.name][2]
        if config.max_batch_size and greatest[0] < config.max_batch_size:
            raise ExportError(
                f"{config.name} promises batches of {config.max_batch_size}, but the optimisation profile of "
                f"{spec.name} ends at {greatest[0]}."
            )
    check_config(config)
