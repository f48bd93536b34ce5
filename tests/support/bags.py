"""Slide heads for tests: small networks without training, sealed as an exporter seals them, beside the real encoder."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.models import read, seal, write

LABELS = (
    ("PATTERN-A", "Pattern A", "#0072b2"),
    ("PATTERN-B", "Pattern B", "#d55e00"),
    ("PATTERN-C", "Pattern C", "#009e73"),
)


class OnnxEngine:
    """The models of a repository without Triton: each folder's ONNX file in onnxruntime. `calls` counts by folder."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._sessions: dict[str, Any] = {}
        self.calls: dict[str, int] = {}

    async def infer(
        self, model: str, batch: Mapping[str, npt.NDArray[Any]], *, deadline_s: float = 120.0
    ) -> dict[str, npt.NDArray[Any]]:
        import onnxruntime

        if model not in self._sessions:
            (file,) = (self._repository / model).glob("*/model.onnx")
            self._sessions[model] = onnxruntime.InferenceSession(file)
        self.calls[model] = self.calls.get(model, 0) + 1
        session = self._sessions[model]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(batch)), strict=True))


def shrink_encoder(repository: Path, width: int = 16, darker_than: float | None = None) -> None:
    """Put a network of one line in the tile encoder's place: a tile's mean colour, mixed to `width` numbers; or only by
    how much its pixels are darker than so much (1 = black), in the mean."""
    folder = repository / "tile_encoder"
    card = read(folder, "card.json")
    channels = 3 if darker_than is None else 1
    mixed_3D = np.random.default_rng(5).normal(0, 0.02, (channels, width)).astype(np.float32)
    weights = {"mixed": mixed_3D, "plane": np.array([1, 2], np.int64)}
    nodes = [helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT)]
    seen = "pixels"
    if darker_than is not None:
        weights |= {"bright": np.array(255 * (1 - darker_than), np.float32), "channel": np.array([3], np.int64)}
        nodes += [
            helper.make_node("ReduceMean", ["pixels", "channel"], ["grey"]),
            helper.make_node("Sub", ["bright", "grey"], ["darker"]),
            helper.make_node("Relu", ["darker"], ["dark"]),
        ]
        seen = "dark"
    nodes += [
        helper.make_node("ReduceMean", [seen, "plane"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "mixed"], ["embedding"]),
    ]
    px = card["tile_px"]
    graph = helper.make_graph(
        nodes,
        "mean_colour",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", px, px, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "1" / "model.onnx")
    config = (folder / "config.pbtxt").read_text()
    (folder / "config.pbtxt").write_text(config.replace(f"dims: [{card['embedding_size']}]", f"dims: [{width}]"))
    (folder / "golden.npz").unlink(missing_ok=True)
    write(folder, "card.json", card | {"embedding_size": width})
    seal(folder)


def add_slide_head(
    repository: Path,
    name: str = "slide_abmil",
    *,
    attends: bool = True,
    place: bool = False,
    tiles: tuple[int, int] = (1, 4096),
    sharpness: float = 8.0,
    **card: Any,
) -> Path:
    """A head over the repository's own tile encoder, version 1; its folder.

    With `attends` it gives its attention, else the mean of the bag decides. `place`: it takes `xy_um`, and attends to
    the tile that lies lowest. `sharpness` multiplies the logits: a small one leaves the head undecided. `card` changes
    fields of its card.
    """
    encoder = read(repository / "tile_encoder", "card.json")
    width = encoder["embedding_size"]
    folder = repository / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "1").mkdir(parents=True)
    onnx.save(_network(width, attends, place, sharpness), folder / "1" / "model.onnx")
    inputs = [("features", f"[1, -1, {width}]"), *([("xy_um", "[1, -1, 2]")] if place else [])]
    outputs = [("logits", f"[1, {len(LABELS)}]"), *([("attention", "[1, -1]")] if attends else [])]
    (folder / "config.pbtxt").write_text(
        f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: 0\n'
        + "".join(f'input [ {{ name: "{one}" data_type: TYPE_FP32 dims: {dims} }} ]\n' for one, dims in inputs)
        + "".join(f'output [ {{ name: "{one}" data_type: TYPE_FP32 dims: {dims} }} ]\n' for one, dims in outputs)
        + "instance_group [ { count: 1 kind: KIND_CPU } ]\n"
        'parameters { key: "intra_op_thread_count" value { string_value: "1" } }\n'
    )
    digests = dict.fromkeys(("engine_sha256", "weights_sha256", "recipe_sha256", "manifest_sha256"), "0" * 64)
    head = read(repository / "tissue_head", "card.json")
    write(
        folder,
        "card.json",
        {
            key: head[key]
            for key in ("schema", "intended_use", "limits", "data", "pretraining", "metrics", "research_use")
        }
        | {
            "name": name,
            "title": "A slide head without training, for tests",
            "kind": "bag",
            "version": "1",
            "target": "onnx",
            "precision": "fp32",
            "mpp": encoder["mpp"],
            "tile_px": encoder["tile_px"],
            "labels": [
                {
                    "index": index,
                    "code": {"code": code, "scheme": "99PATHSERVE", "display": display},
                    "exploratory": {"code": f"X-{code}"[:16], "scheme": "99PATHSERVE", "display": f"Like {display}"},
                    "supported": True,
                    "color": color,
                }
                for index, (code, display, color) in enumerate(LABELS)
            ],
            "operating_points": [
                {"name": "answer", "min_probability": 0.5, "band": 0.0, "origin": "Chosen for a test."}
            ],
            "digests": digests | {"recipe": "none"},
            "golden_tolerance": 0.001,
            "encoder": {"model": "tile_encoder", "weights_sha256": encoder["digests"]["weights_sha256"]},
            "feature_size": width,
            "tiles": list(tiles),
        }
        | card,
    )
    seal(folder)
    return folder


def _network(width: int, attends: bool, place: bool, sharpness: float) -> onnx.ModelProto:
    """features (1,N,D) -> logits (1,C), attention (1,N): attention is a softmax of one linear score."""
    rng = np.random.default_rng(7)
    score_D1 = rng.normal(0, 0.2, (width, 1)).astype(np.float32)
    classes_DC = (sharpness * rng.normal(0, 1 / np.sqrt(width), (width, len(LABELS)))).astype(np.float32)
    weights = {
        "score": score_D1,
        "classes": classes_DC,
        "axis": np.array([2], np.int64),
        "down": np.array([1], np.int64),
    }
    nodes = [helper.make_node("MatMul", ["features", "score"], ["scored"])]
    if not attends:
        nodes = [helper.make_node("ReduceMean", ["features", "down"], ["pooled"], keepdims=0)]
    else:
        scored = "scored"
        if place:
            weights["lowest"] = np.array([[0.0], [0.1]], np.float32)
            nodes += [
                helper.make_node("MatMul", ["xy_um", "lowest"], ["low"]),
                helper.make_node("Add", ["scored", "low"], ["placed"]),
            ]
            scored = "placed"
        nodes += [
            helper.make_node("Softmax", [scored], ["weighed"], axis=1),
            helper.make_node("Squeeze", ["weighed", "axis"], ["attention"]),
            helper.make_node("Mul", ["weighed", "features"], ["parts"]),
            helper.make_node("ReduceSum", ["parts", "down"], ["pooled"], keepdims=0),
        ]
    nodes.append(helper.make_node("MatMul", ["pooled", "classes"], ["logits"]))
    inputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, "tiles", width])]
    if place:
        inputs.append(helper.make_tensor_value_info("xy_um", TensorProto.FLOAT, [1, "tiles", 2]))
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, len(LABELS)])]
    if attends:
        outputs.append(helper.make_tensor_value_info("attention", TensorProto.FLOAT, [1, "tiles"]))
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "slide_head",
        inputs,
        outputs,
        [numpy_helper.from_array(value, name) for name, value in weights.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
