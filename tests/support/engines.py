"""Model folders of networks that tests write node by node: graph, config, card and seals, as exporters leave them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.models import seal, write

_TYPES = {
    "image": TensorProto.UINT8,
    "mask": TensorProto.BOOL,
    **dict.fromkeys(("token_ids", "token_mask", "text_mask", "query_index"), TensorProto.INT64),
}
"""The tensors that are not FP32."""
_TRITON = {TensorProto.UINT8: "UINT8", TensorProto.BOOL: "BOOL", TensorProto.INT64: "INT64", TensorProto.FLOAT: "FP32"}

Dims = Mapping[str, Sequence[int | str]]


def graph_of(
    nodes: Sequence[onnx.NodeProto], inputs: Dims, outputs: Dims, weights: Mapping[str, npt.NDArray[Any]]
) -> onnx.ModelProto:
    """A checked graph. Dims lack the batch axis, which all tensors have; one that is a word is free."""

    def value(name: str, dims: Sequence[int | str]) -> Any:
        return helper.make_tensor_value_info(name, _TYPES.get(name, TensorProto.FLOAT), ["batch", *dims])

    graph = helper.make_graph(
        list(nodes),
        "graph",
        [value(name, dims) for name, dims in inputs.items()],
        [value(name, dims) for name, dims in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def write_engine(repository: Path, name: str, model: onnx.ModelProto, most: int, **card: Any) -> Path:
    """A sealed folder, version 1, of batches up to `most`; see `write_card`."""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    onnx.save(model, folder / "1" / "model.onnx")
    (folder / "config.pbtxt").write_text(
        f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: {most}\n'
        + tensors_of("input", model.graph.input)
        + tensors_of("output", model.graph.output)
        + "instance_group [ { count: 1 kind: KIND_CPU } ]\ndynamic_batching { }\n"
        'parameters { key: "intra_op_thread_count" value { string_value: "1" } }\n'
    )
    write_card(folder, **card)
    return folder


def tensors_of(role: str, values: Any) -> str:
    """The lines of a config for the inputs or outputs of a graph."""
    lines = []
    for value in values:
        tensor = value.type.tensor_type
        dims = ", ".join(str(dim.dim_value or -1) for dim in list(tensor.shape.dim)[1:])
        lines.append(
            f'{role} [ {{ name: "{value.name}" data_type: TYPE_{_TRITON[tensor.elem_type]} dims: [ {dims} ] }} ]\n'
        )
    return "".join(lines)


def write_card(folder: Path, **card: Any) -> None:
    """The card of a folder, whose title, kind, scale, intended use and limits `card` has to say; then its seals."""
    digests = dict.fromkeys(("engine_sha256", "weights_sha256", "recipe_sha256", "manifest_sha256"), "1" * 64)
    write(
        folder,
        "card.json",
        {
            "schema": "pathserve-card-1",
            "name": folder.name,
            "version": "1",
            "target": "onnx",
            "precision": "fp32",
            "labels": [],
            "operating_points": [],
            "digests": digests | {"recipe": "none"},
            "data": [],
            "pretraining": [],
            "metrics": [],
            "golden_tolerance": 0.001,
            "research_use": "research use, not a medical device",
            **card,
        },
    )
    seal(folder)
