"""Tiny models for the tests, made with onnx.helper: known answers, known durations, and known defects."""

import json
import time
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gateway.inference.names import split_folder
from tests.support.models import seal

SIDE = 64
WIDTH = 8

CONFIG = """name: "{name}"
backend: "onnxruntime"
max_batch_size: 64
input [ {{ name: "{input}" data_type: TYPE_{input_type} dims: [ {input_dims} ] }} ]
output [ {{ name: "{output}" data_type: TYPE_FP32 dims: [ {output_dims} ] }} ]
instance_group [ {{ count: {count} kind: KIND_CPU }} ]
dynamic_batching {{ }}
"""

ENSEMBLE = """name: "{name}"
platform: "ensemble"
max_batch_size: 64
input [ {{ name: "image" data_type: TYPE_UINT8 dims: [ {side}, {side}, 3 ] }} ]
output [ {{ name: "logits" data_type: TYPE_FP32 dims: [ 3 ] }} ]
ensemble_scheduling {{
  step [
    {{ model_name: "{first}" model_version: -1
       input_map {{ key: "image" value: "image" }} output_map {{ key: "embedding" value: "embedding" }} }},
    {{ model_name: "{second}" model_version: -1
       input_map {{ key: "embedding" value: "embedding" }} output_map {{ key: "logits" value: "logits" }} }}
  ]
}}
"""


def write_encoder(repository: Path, name: str, *, count: int = 1, golden: bool = False) -> Path:
    """image UINT8 (B,SIDE,SIDE,3) -> embedding FP32 (B,WIDTH): the mean colour times fixed weights."""
    weights = np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["embedding"]),
    ]
    constants = {"axes": np.array([1, 2], np.int64), "weights": weights}
    model = _model(nodes, ("image", TensorProto.UINT8, [SIDE, SIDE, 3]), ("embedding", [WIDTH]), constants)
    folder = _write(repository, name, model, count=count)
    if golden:
        write_golden(folder)
    return folder


def write_head(repository: Path, name: str) -> Path:
    """embedding FP32 (B,WIDTH) -> logits FP32 (B,3)."""
    weights = np.random.default_rng(1).normal(size=(WIDTH, 3)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["embedding", "weights"], ["logits"])]
    model = _model(nodes, ("embedding", TensorProto.FLOAT, [WIDTH]), ("logits", [3]), {"weights": weights})
    return _write(repository, name, model)


def write_slow(repository: Path, name: str, *, count: int = 1) -> Path:
    """image UINT8 (B,SIDE,SIDE,3) -> embedding FP32 (B,3): the first pixel; its red value times about 12 ms of work."""
    return _write(repository, name, _slow(_turns()), count=count)


@cache
def _turns() -> int:
    """How often the slow model turns in 12 ms on this machine, or more often: what is slow must be so on a fast one."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(_slow(1).SerializeToString(), options)
    took_s = []
    for _ in range(5):
        begun = time.perf_counter()
        session.run(None, {"image": slow_tiles(1, 100)})
        took_s.append(time.perf_counter() - begun)
    return max(25, round(0.012 / (min(took_s) / 100)))


def _slow(rate: int) -> onnx.ModelProto:
    """The slow model, which turns `rate` times for each of the red value's steps."""
    size = 256
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["carried_in", "square"], ["carried_out"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_in", TensorProto.FLOAT, [size, size]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_out", TensorProto.FLOAT, [size, size]),
        ],
    )
    nodes = [
        helper.make_node("Slice", ["image", "from", "to", "axes"], ["first"]),
        helper.make_node("Cast", ["first"], ["first_float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["first_float", "inner"], ["pixel"], keepdims=0),
        helper.make_node("Cast", ["first"], ["first_int"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["first_int"], ["red"], keepdims=0),
        helper.make_node("Mul", ["red", "rate"], ["turns"]),
        helper.make_node("Loop", ["turns", "yes", "square"], ["worked"], body=body),
        helper.make_node("ReduceMean", ["worked"], ["worked_mean"], keepdims=0),
        helper.make_node("Mul", ["worked_mean", "nothing"], ["zero"]),
        helper.make_node("Add", ["pixel", "zero"], ["embedding"]),
    ]
    constants = {
        "from": np.array([0, 0], np.int64),
        "to": np.array([1, 1], np.int64),
        "axes": np.array([1, 2], np.int64),
        "inner": np.array([1, 2], np.int64),
        "rate": np.array(rate, np.int64),
        "yes": np.array(True),
        "square": np.eye(size, dtype=np.float32),
        "nothing": np.array(0, np.float32),
    }
    return _model(nodes, ("image", TensorProto.UINT8, [SIDE, SIDE, 3]), ("embedding", [3]), constants)


def write_picky(repository: Path, name: str) -> Path:
    """image -> embedding FP32 (B,1): the first pixel's red value, which must be under 10: else the run fails.

    Triton waits 0.3 s for more requests, so that two sent together are one batch.
    """
    nodes = [
        helper.make_node("Slice", ["image", "from", "to", "axes"], ["first"]),
        helper.make_node("Cast", ["first"], ["index"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["index", "flat"], ["rows"]),
        helper.make_node("Gather", ["table", "rows"], ["embedding"], axis=0),
    ]
    constants = {
        "from": np.array([0, 0, 0], np.int64),
        "to": np.array([1, 1, 1], np.int64),
        "axes": np.array([1, 2, 3], np.int64),
        "flat": np.array([-1], np.int64),
        "table": np.arange(10, dtype=np.float32)[:, None],
    }
    model = _model(nodes, ("image", TensorProto.UINT8, [SIDE, SIDE, 3]), ("embedding", [1]), constants)
    folder = _write(repository, name, model)
    config = folder / "config.pbtxt"
    together = "dynamic_batching { max_queue_delay_microseconds: 300000 preferred_batch_size: [ 64 ] }"
    config.write_text(config.read_text().replace("dynamic_batching { }", together))
    seal(folder)
    return folder


def write_ensemble(repository: Path, name: str, first: str, second: str) -> Path:
    """image -> embedding -> logits by two models that are there already."""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / ".gitkeep").touch()
    (folder / "config.pbtxt").write_text(ENSEMBLE.format(name=name, side=SIDE, first=first, second=second))
    write_card(folder, kind="ensemble", steps=[first, second])
    return folder


def write_card(folder: Path, *, kind: str = "encoder", **more: object) -> None:
    """The card of a folder whose engine and config.pbtxt are there, and what seals them all."""
    code = {"code": "85756007", "scheme": "SCT", "display": "Tissue"}
    label = {"code": code, "exploratory": code, "supported": True, "color": "#808080"}
    card = {
        "schema": "pathserve-card-1",
        "name": (split_folder(folder.name) or (folder.name,))[0],
        "title": "A test model",
        "kind": kind,
        "version": "1",
        "mpp": 0.5,
        "tile_px": SIDE,
        "labels": [label | {"index": index} for index in range(3)],
        "intended_use": {"statement": "Tests.", "organs": [code], "specimen_types": [code], "stains": ["HE"]},
        "operating_points": [{"name": "default", "min_probability": 0.5, "origin": "none", "band": 0.02}],
        "digests": {
            "weights_sha256": "1" * 64,
            "recipe": "tests",
            "recipe_sha256": "2" * 64,
            "manifest_sha256": "3" * 64,
        },
        "limits": ["Knows nothing."],
        "research_use": "research use, not a medical device",
    }
    (folder / "card.json").write_text(json.dumps(card | more))
    seal(folder)


def write_golden(folder: Path, error: float = 0.0) -> None:
    """Golden inputs and the answers of direct onnxruntime, `error` added."""
    images = tiles(3, seed=7)
    np.savez(folder / "golden.npz", image=images, **{"expected.embedding": direct(folder, images) + np.float32(error)})
    seal(folder)


def tiles(count: int, seed: int = 0) -> np.ndarray:
    """(count,SIDE,SIDE,3) uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def slow_tiles(count: int, red: int) -> np.ndarray:
    """Tiles that keep the slow model busy for about `red` times 12 ms."""
    images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    images[:, 0, 0, 0] = red
    return images


def direct(folder: Path, array: np.ndarray) -> np.ndarray:
    """The first output of a model by onnxruntime in this process."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx", options)
    return session.run(None, {session.get_inputs()[0].name: array})[0]


def _model(nodes, given, made, constants) -> onnx.ModelProto:
    name, kind, dims = given
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, ["B", *dims])],
        [helper.make_tensor_value_info(made[0], TensorProto.FLOAT, ["B", *made[1]])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def _write(repository: Path, name: str, model: onnx.ModelProto, count: int = 1) -> Path:
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    onnx.save(model, folder / "1" / "model.onnx")
    given, made = model.graph.input[0], model.graph.output[0]
    shape = [[str(dim.dim_value) for dim in node.type.tensor_type.shape.dim[1:]] for node in (given, made)]
    config = CONFIG.format(
        name=name,
        input=given.name,
        input_type="UINT8" if given.type.tensor_type.elem_type == TensorProto.UINT8 else "FP32",
        input_dims=", ".join(shape[0]),
        output=made.name,
        output_dims=", ".join(shape[1]),
        count=count,
    )
    (folder / "config.pbtxt").write_text(config)
    write_card(folder)
    return folder
