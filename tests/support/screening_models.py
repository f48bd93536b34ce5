"""Cervical screening for tests: a detector, an encoder of cells and a slide head whose answers are known, untrained.

They have the tensors and the cards of the released engines, and know cells by their colour: a blot painted in a colour
of COLOURS, `BLOT_UM` across, is found as a cell of that class; one of NILM's colour (which is that of the nuclei of
phantoms) is found as ASC-US, a false alarm, that the slide head then takes for NILM.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from gateway.domain.bethesda import CLASSES, NAMES, NILM
from gateway.slides.cell_crops import CellCrops
from gateway.slides.site_colour import Densities
from gateway.slides.site_state import Source
from tests.support.engines import graph_of, write_engine
from tests.support.models import read

DETECT_MPP, TILE_PX, OVERLAP_PX = 0.375, 512, 96
CROP_MPP, CROP_PX = 0.245, 64
WIDTH = len(CLASSES) + 3
"""Of an embedding: how much of a crop has each class's colour, and its mean red, green and blue (0 to 1)."""
QUERIES = (TILE_PX // 32) ** 2
BOX_PX = 64
"""Side of every box, in the detector's pixels."""
BLOT_UM = 12.0
COLOURS = (
    (65, 67, 135),
    (150, 60, 60),
    (60, 140, 60),
    (150, 130, 40),
    (130, 40, 140),
    (40, 130, 140),
    (30, 30, 30),
)
"""Red, green and blue by Bethesda number."""
SCORE, SCORE_OF_NILM = 0.95, 0.6
"""The detector's score of a blot of exactly its colour."""
MOST_TILES, MOST_CROPS, MOST_BAGS, MOST_CELLS = 8, 64, 8, 600
SUPPORTED = tuple(name not in ("SCC", "AGC") for name in NAMES)
ABNORMAL_FROM = 0.3
TEMPERATURE = 1.5
BIASES = (0.1, 0.0, 0.0, 0.0, -0.1, 0.0, 0.0)
TOP_K = 20
CROPS = CellCrops(CROP_PX)
SOURCE = Source(
    Densities((0.35, 0.4, 0.25), (0.45, 0.5, 0.35)),
    np.array([0.14, *[0.005] * (len(CLASSES) - 1), 0.82, 0.82, 0.87], np.float32),
    np.full(WIDTH, 0.1, np.float32),
    1.0,
)
"""Slides of painted NILM cells on glass lie within its gate."""

_NEAR = 40 / 255
"""Colours farther apart than this (Euclidean, of 0..1) have nothing in common."""
_WEIGHT, _WEIGHT_OF_NILM, _START = 80.0, 20.0, 6.0
_NAMES = ("smartccs_detect", "smartccs_embed", "smartccs_slide")


def write_screening(
    repository: Path,
    *,
    pool: Literal["mean", "max"] = "max",
    supported: tuple[bool, ...] = SUPPORTED,
    abnormal_from: float = ABNORMAL_FROM,
    source: Source = SOURCE,
    annotated: bool = False,
) -> Path:
    """Add `smartccs_detect`, `smartccs_embed` and `smartccs_slide` to a repository; it.

    With the pool "max" one abnormal cell decides a slide, as long as no other is of a class; with "mean" it is lost
    among many. `annotated`: the slide model's card names no detector.
    """
    detect, embed, slide = (_said(name, number) for number, name in enumerate(_NAMES, 1))
    merging = {"overlap_px": OVERLAP_PX, "score_threshold": 0.2, "nms_iou": 0.75}
    write_engine(
        repository,
        _NAMES[0],
        _detector(),
        MOST_TILES,
        **detect | {"mpp": DETECT_MPP, "tile_px": TILE_PX},
        kind="detector",
        labels=[label | {"index": column} for column, label in enumerate(_labels(supported)[1:])],
        operating_points=[_point("cell", 0.2, "Chosen for a test.")],
        **merging,
    )
    crop = asdict(CROPS) | {"transform_sha256": CROPS.digest}
    write_engine(
        repository, _NAMES[1], _encoder(), MOST_CROPS, **embed, kind="encoder", embedding_size=WIDTH, crop=crop
    )
    write_engine(
        repository,
        _NAMES[2],
        _slide_head(pool),
        MOST_BAGS,
        **slide,
        kind="bag",
        labels=_labels(supported),
        operating_points=[_point("95 % sensitivity", abnormal_from, "Chosen for a test; validation centre: none.")],
        encoder=_other(repository, _NAMES[1]),
        feature_size=WIDTH,
        tiles=[1, MOST_CELLS],
        composed=True,
        screening={
            "temperature": TEMPERATURE,
            "biases": BIASES,
            "transform_sha256": CROPS.digest,
            "top_k": TOP_K,
            "pool": pool,
            "detector": None if annotated else _other(repository, _NAMES[0]),
            "source": source.record(),
        },
    )
    return repository


def paint(image_HW3: npt.NDArray[np.uint8], number: int, x_px: float, y_px: float, mpp: float) -> None:
    """Paint a cell of a class into a picture, a square blot about a point."""
    half = BLOT_UM / 2 / mpp
    left, right, top, bottom = (round(edge) for edge in (x_px - half, x_px + half, y_px - half, y_px + half))
    image_HW3[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = COLOURS[number]


def _affinity(cell_px: int) -> tuple[list[onnx.NodeProto], dict[str, npt.NDArray[Any]]]:
    """Nodes from `image` to `colour` (B,3,h,w), the mean of each square of `cell_px`, and `near` (B,7,h,w): 1 where
    that is a class's colour, 0 where it is `_NEAR` away or more. |x - c|² = |x|² - 2x·c + |c|²."""
    colours_73 = np.array(COLOURS, np.float32) / 255
    nodes = [
        helper.make_node("Cast", ["image"], ["bytes"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["bytes"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["planes", "white"], ["light"]),
        helper.make_node("AveragePool", ["light"], ["colour"], kernel_shape=[cell_px] * 2, strides=[cell_px] * 2),
        helper.make_node("Mul", ["colour", "colour"], ["squares"]),
        helper.make_node("ReduceSum", ["squares", "channel"], ["length"]),
        helper.make_node("Conv", ["colour", "colours", "lengths"], ["crossed"]),
        helper.make_node("Add", ["crossed", "length"], ["apart"]),
        helper.make_node("Div", ["apart", "reach"], ["far"]),
        helper.make_node("Sub", ["one", "far"], ["nearness"]),
        helper.make_node("Relu", ["nearness"], ["near"]),
    ]
    weights: dict[str, npt.NDArray[Any]] = {
        "white": np.array(255, np.float32),
        "channel": np.array([1], np.int64),
        "colours": -2 * colours_73[:, :, None, None],
        "lengths": np.square(colours_73).sum(1),
        "reach": np.array(_NEAR**2, np.float32),
        "one": np.array(1, np.float32),
    }
    return nodes, weights


def _detector() -> onnx.ModelProto:
    """Where the colour of a class is densest within 15 µm lies a cell: a query for each square of 4 × 4 of them, whose
    box is about the middle of that colour. Two cells need 15 µm between them."""
    nodes, weights = _affinity(8)
    side = TILE_PX // 8
    at = (np.arange(side, dtype=np.float32) + 0.5) / side
    found = np.zeros((6, len(CLASSES), 1, 1), np.float32)
    for number in range(1, len(CLASSES)):
        found[number - 1, number] = SCORE
    found[0, NILM] = SCORE_OF_NILM

    def pool(kind: str, given: str, made: str, size: int, stride: int = 1) -> onnx.NodeProto:
        around = {"pads": [size // 2] * 4} if stride == 1 else {}
        counted = {"count_include_pad": 1} if kind == "AveragePool" else {}
        return helper.make_node(
            kind, [given], [made], kernel_shape=[size] * 2, strides=[stride] * 2, **around, **counted
        )

    nodes += [
        helper.make_node("ReduceMax", ["near", "channel"], ["any"]),
        helper.make_node("Mul", ["any", "places"], ["placed"]),
        helper.make_node("Concat", ["any", "placed"], ["moments"], axis=1),
        pool("AveragePool", "moments", "smooth", 5),
        helper.make_node("Split", ["smooth", "parts"], ["mass", "moved"], axis=1),
        helper.make_node("Add", ["mass", "tie"], ["ranked"]),
        pool("MaxPool", "ranked", "best", 9),
        helper.make_node("GreaterOrEqual", ["ranked", "best"], ["is_peak"]),
        helper.make_node("Cast", ["is_peak"], ["peak"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["mass", "least"], ["divisor"]),
        helper.make_node("Div", ["moved", "divisor"], ["middle"]),
        helper.make_node("Mul", ["middle", "peak"], ["kept_middle"]),
        pool("MaxPool", "kept_middle", "centres", 4, 4),
        pool("MaxPool", "near", "spread", 3),
        helper.make_node("Conv", ["spread", "found"], ["said"]),
        helper.make_node("Mul", ["said", "peak"], ["kept_said"]),
        pool("MaxPool", "kept_said", "squares_said", 4, 4),
        helper.make_node("Reshape", ["squares_said", "six"], ["scores_6Q"]),
        helper.make_node("Transpose", ["scores_6Q"], ["scores"], perm=[0, 2, 1]),
        helper.make_node("Mul", ["centres", "nothing"], ["empty"]),
        helper.make_node("Add", ["empty", "size"], ["sizes"]),
        helper.make_node("Concat", ["centres", "sizes"], ["boxes_maps"], axis=1),
        helper.make_node("Reshape", ["boxes_maps", "four"], ["boxes_4Q"]),
        helper.make_node("Transpose", ["boxes_4Q"], ["boxes"], perm=[0, 2, 1]),
    ]
    weights |= {
        "places": np.stack(np.broadcast_arrays(at[None, :], at[:, None]))[None],
        "parts": np.array([1, 2], np.int64),
        # Equal neighbours are told apart by where they lie.
        "tie": np.arange(side * side, dtype=np.float32).reshape(1, 1, side, side) * 1e-7,
        "least": np.array(1e-6, np.float32),
        "found": found,
        "six": np.array([0, 6, -1], np.int64),
        "four": np.array([0, 4, -1], np.int64),
        "nothing": np.array(0, np.float32),
        "size": np.array(BOX_PX / TILE_PX, np.float32),
    }
    return graph_of(nodes, {"image": [TILE_PX, TILE_PX, 3]}, {"scores": [QUERIES, 6], "boxes": [QUERIES, 4]}, weights)


def _encoder() -> onnx.ModelProto:
    nodes, weights = _affinity(4)
    nodes += [
        helper.make_node("ReduceMean", ["near", "plane"], ["shares"], keepdims=0),
        helper.make_node("ReduceMean", ["colour", "plane"], ["mean"], keepdims=0),
        helper.make_node("Concat", ["shares", "mean"], ["embedding"], axis=1),
    ]
    weights["plane"] = np.array([2, 3], np.int64)
    return graph_of(nodes, {"image": [CROP_PX, CROP_PX, 3]}, {"embedding": [WIDTH]}, weights)


def _slide_head(pool: Literal["mean", "max"]) -> onnx.ModelProto:
    """A cell's logits from its shares of colours; the slide's are their mean, or largest, where the mask is true."""
    classes_DC = np.zeros((WIDTH, len(CLASSES)), np.float32)
    np.fill_diagonal(classes_DC, _WEIGHT)
    classes_DC[NILM, NILM] = _WEIGHT_OF_NILM
    start_C = np.where(np.arange(len(CLASSES)) == NILM, _START, 0).astype(np.float32)
    nodes = [
        helper.make_node("Unsqueeze", ["gamma", "row"], ["gamma_B1D"]),
        helper.make_node("Unsqueeze", ["beta", "row"], ["beta_B1D"]),
        helper.make_node("Mul", ["features", "gamma_B1D"], ["scaled"]),
        helper.make_node("Add", ["scaled", "beta_B1D"], ["adapted"]),
        helper.make_node("MatMul", ["adapted", "classes"], ["weighed"]),
        helper.make_node("Add", ["weighed", "start"], ["cell_logits"]),
        helper.make_node("Unsqueeze", ["mask", "last"], ["there"]),
        helper.make_node("Where", ["there", "cell_logits", "absent"], ["kept"]),
    ]
    weights: dict[str, npt.NDArray[Any]] = {
        "row": np.array([1], np.int64),
        "last": np.array([2], np.int64),
        "classes": classes_DC,
        "start": start_C,
        "absent": np.array(0 if pool == "mean" else -1e4, np.float32),
    }
    if pool == "max":
        nodes.append(helper.make_node("ReduceMax", ["kept", "row"], ["logits"], keepdims=0))
    else:
        nodes += [
            helper.make_node("ReduceSum", ["kept", "row"], ["total"], keepdims=0),
            helper.make_node("Cast", ["mask"], ["ones"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["ones", "row"], ["count"]),
            helper.make_node("Div", ["total", "count"], ["logits"]),
        ]
    return graph_of(
        nodes,
        {"features": ["cells", WIDTH], "mask": ["cells"], "gamma": [WIDTH], "beta": [WIDTH]},
        {"logits": [len(CLASSES)], "cell_logits": ["cells", len(CLASSES)]},
        weights,
    )


def _labels(supported: tuple[bool, ...]) -> list[dict[str, Any]]:
    return [
        {
            "index": number,
            "code": asdict(entry.code),
            "exploratory": {"code": f"CYT-{number}", "scheme": "99PATHSERVE", "display": f"cell pattern {number}"},
            "supported": supported[number],
            "color": "#{:02x}{:02x}{:02x}".format(*COLOURS[number]),
        }
        for number, entry in enumerate(CLASSES)
    ]


def _said(name: str, number: int) -> dict[str, Any]:
    digests = dict.fromkeys(("engine_sha256", "recipe_sha256", "manifest_sha256"), "0" * 64)
    return {
        "title": f"{name} without training, for tests",
        "mpp": CROP_MPP,
        "tile_px": CROP_PX,
        "intended_use": {
            "statement": "Tests.",
            "organs": [{"code": "71252005", "scheme": "SCT", "display": "Cervix"}],
            "specimen_types": [],
            "stains": ["PAP"],
        },
        "digests": digests | {"recipe": "none", "weights_sha256": str(number) * 64},
        "limits": ["Knows cells by their colour only."],
    }


def _point(name: str, least: float, origin: str) -> dict[str, Any]:
    return {"name": name, "min_probability": least, "band": 0.02, "origin": origin}


def _other(repository: Path, name: str) -> dict[str, str]:
    return {"model": name, "weights_sha256": read(repository / name, "card.json")["digests"]["weights_sha256"]}
