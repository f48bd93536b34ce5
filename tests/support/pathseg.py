"""Segmentation by words for tests: four model folders of small networks whose masks are known, without training.

They have the tensors, the sizes and the cards of the released engines. A pixel belongs to the mask where the image is
dark enough for the prompt's level, whatever the object and the region; of ABSENT the presence is denied.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from gateway.domain.prompts import UNSPECIFIED, Level, Triple, code_of, token_ids, words
from tests.support.engines import graph_of, tensors_of, write_card, write_engine

TILE_PX, WIDTH = 256, 4
THRESHOLD = {Level.NUCLEI: 0.55, Level.CELL: 0.4, Level.TISSUE: 0.2}
"""Darkness (1 = black, 0 = white; the mean of the three colours) above which a pixel is in a mask of the level."""
ABSENT = "glomerulus"
"""The object whose presence is denied in every image; its prompts are the only ones that are not supported."""
MPP_BY_LEVEL = {"tissue": 1.0, "cell": 0.25, "nuclei": 0.25}
PRESENCE_BY_LEVEL = {
    level: {"threshold": threshold, "temperature": 1.0}
    for level, threshold in (("tissue", 0.6), ("cell", 0.5), ("nuclei", 0.4))
}
MOST_TILES, MOST_PROMPTS, MOST_TOKENS = 16, 32, 16
TRIPLES = (
    Triple(Level.NUCLEI, "nucleus", "colon"),
    Triple(Level.NUCLEI, "epithelial", "colon"),
    Triple(Level.NUCLEI, "inflammatory", "colon"),
    Triple(Level.NUCLEI, "nucleus", UNSPECIFIED),
    Triple(Level.TISSUE, "tumor", "breast"),
    Triple(Level.TISSUE, "gland", "colon"),
    Triple(Level.TISSUE, ABSENT, "kidney"),
)
"""The prompts of the card."""

_SHARPNESS = 40.0
_SAID: dict[str, Any] = {
    "title": "Dark pixels as masks, for tests",
    "mpp": MPP_BY_LEVEL["nuclei"],
    "tile_px": TILE_PX,
    "intended_use": {
        "statement": "Tests.",
        "organs": [{"code": "71854001", "scheme": "SCT", "display": "Colon"}],
        "specimen_types": [],
        "stains": ["HE"],
    },
    "limits": ["Knows nothing but how dark a pixel is."],
}
_STEPS = ("pathseg_image", "pathseg_prompt")


def expected_mask(image_HW3: npt.NDArray[np.uint8], level: Level) -> npt.NDArray[np.bool_]:
    """(H,W) what the engines answer for an image of whole 2 × 2 cells: each cell is dark enough, or is not."""
    height, width, _ = image_HW3.shape
    cells = image_HW3.astype(np.float64).reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3, 4))
    return np.kron(1 - cells / 255 > THRESHOLD[level], np.ones((2, 2), bool))


def write_pathseg(repository: Path) -> Path:
    """Add `pathseg_text`, `pathseg_image`, `pathseg_prompt` and the ensemble `pathseg` to a repository; it."""
    prompts = _prompts()
    shared = {
        "tokenizer_sha256": hashlib.sha256("\n".join(words()).encode()).hexdigest(),
        "max_tokens": MOST_TOKENS,
        "vocabulary_size": len(words()),
    }
    others = {
        key: {"model": model, "weights_sha256": "1" * 64}
        for key, model in (("image_encoder", "pathseg_image"), ("text_encoder", "pathseg_text"))
    }
    masks: dict[str, Any] = {
        "mpp_by_level": MPP_BY_LEVEL,
        "presence_by_level": PRESENCE_BY_LEVEL,
        **shared,
        **others,
        "prompts": {
            "table_sha256": hashlib.sha256(_table().encode()).hexdigest(),
            "entries": prompts,
        },
    }
    text: dict[str, Any] = {"kind": "text_encoder", "text_pool": "mean", **shared}
    image = {"kind": "image_encoder", "stride_px": 2, "mpp_by_level": MPP_BY_LEVEL}
    write_engine(repository, "pathseg_text", _text(), MOST_PROMPTS, **_SAID, **text)
    write_engine(repository, "pathseg_image", _image(), MOST_TILES, **_SAID, **image)
    folder = repository / "pathseg_prompt"
    folder.mkdir()
    (folder / "prompts.csv").write_text(_table())
    write_engine(repository, "pathseg_prompt", _prompt(), MOST_TILES, **_SAID, kind="mask_decoder", **masks)
    _ensemble(repository, masks)
    return repository


def _prompts() -> list[dict[str, Any]]:
    def code(one: Any) -> dict[str, str]:
        return {"code": one.code, "scheme": one.scheme, "display": one.display}

    return [
        {
            "text": triple.text,
            **dict(zip(("category", "code"), map(code, code_of(triple)), strict=True)),
            "supported": triple.object != ABSENT,
            "dice": None if triple.object == ABSENT else 0.75,
            "train_images": 10,
        }
        for triple in TRIPLES
    ]


def _table() -> str:
    rows = ["level,object,region,train_images,val_dice,supported"]
    for triple in TRIPLES:
        known = triple.object != ABSENT
        rows.append(f"{triple.level},{triple.object},{triple.region},10,{'0.75' if known else ''},{str(known).lower()}")
    return "\n".join(rows) + "\n"


def _vectors() -> npt.NDArray[np.float32]:
    """(V,WIDTH) per token: what it adds to the slope, to the offset, and to the presence."""
    table = np.zeros((len(words()), WIDTH), np.float32)
    for level, threshold in THRESHOLD.items():
        ((first, *_),), _ = token_ids([Triple(level, "nucleus", "colon")])
        table[first, :3] = _SHARPNESS, -_SHARPNESS * threshold, 4.0
    ids, _ = token_ids([Triple(Level.NUCLEI, ABSENT, "colon"), Triple(Level.NUCLEI, "nucleus", "colon")])
    table[ids[0][ids[0] != ids[1]], 2] = -8.0
    return table


def _text() -> onnx.ModelProto:
    """The words' vectors, and their sum."""
    return graph_of(
        [
            helper.make_node("Gather", ["table", "token_ids"], ["every"]),
            helper.make_node("Cast", ["token_mask"], ["kept"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["kept", "last"], ["column"]),
            helper.make_node("Mul", ["every", "column"], ["text_tokens"]),
            helper.make_node("ReduceSum", ["text_tokens", "row"], ["text_global"], keepdims=0),
        ],
        {"token_ids": ["tokens"], "token_mask": ["tokens"]},
        {"text_tokens": ["tokens", WIDTH], "text_global": [WIDTH]},
        {"table": _vectors(), "last": np.array([-1], np.int64), "row": np.array([1], np.int64)},
    )


def _image() -> onnx.ModelProto:
    """Mean darkness of every cell of 2, 4, 8 and 16 pixels, and a channel of ones."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "colours"], ["grey"], keepdims=1),
        helper.make_node("Transpose", ["grey"], ["plane"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["plane", "white"], ["bright"]),
        helper.make_node("Sub", ["one", "bright"], ["dark"]),
        helper.make_node("Mul", ["dark", "first"], ["placed"]),
        helper.make_node("Add", ["placed", "second"], ["channels"]),
    ]
    outputs = {}
    for name, stride in (("features_4", 4), ("features_8", 8), ("features_16", 16), ("mask_features", 2)):
        nodes.append(
            helper.make_node(
                "AveragePool", ["channels"], [name], kernel_shape=[stride, stride], strides=[stride, stride]
            )
        )
        outputs[name] = [WIDTH, TILE_PX // stride, TILE_PX // stride]
    column = np.eye(WIDTH, dtype=np.float32)[:, :, None, None]
    return graph_of(
        nodes,
        {"image": [TILE_PX, TILE_PX, 3]},
        outputs,
        {
            "colours": np.array([3], np.int64),
            "white": np.array(255, np.float32),
            "one": np.array(1, np.float32),
            "first": column[:1],
            "second": column[1:2],
        },
    )


def _prompt() -> onnx.ModelProto:
    """Slope times darkness plus offset. The coarse maps and the single tokens are taken, and not read."""
    side = TILE_PX // 2
    return graph_of(
        [
            helper.make_node("Mul", ["text_global", "shape"], ["scores"]),
            helper.make_node("Reshape", ["mask_features", "cells"], ["flat"]),
            helper.make_node("MatMul", ["scores", "flat"], ["masks"]),
            helper.make_node("Reshape", ["masks", "square"], ["small"]),
            helper.make_node("Resize", ["small", "", "scales"], ["mask_logits"], mode="nearest"),
            helper.make_node("Mul", ["text_global", "presence"], ["said"]),
            helper.make_node("ReduceSum", ["said", "inner"], ["presence_logit"], keepdims=0),
            helper.make_node("Sigmoid", ["presence_logit"], ["match_similarity"]),
            helper.make_node("Cast", ["match_similarity"], ["query_index"], to=TensorProto.INT64),
        ],
        {
            **{f"features_{stride}": [WIDTH, TILE_PX // stride, TILE_PX // stride] for stride in (4, 8, 16)},
            "mask_features": [WIDTH, side, side],
            "text_tokens": ["prompts", "tokens", WIDTH],
            "text_global": ["prompts", WIDTH],
            "text_mask": ["prompts", "tokens"],
        },
        {
            "mask_logits": ["prompts", TILE_PX, TILE_PX],
            "presence_logit": ["prompts"],
            "match_similarity": ["prompts"],
            "query_index": ["prompts"],
        },
        {
            "shape": np.eye(WIDTH, dtype=np.float32)[:2].sum(0),
            "cells": np.array([0, WIDTH, side * side], np.int64),
            "square": np.array([0, -1, side, side], np.int64),
            "scales": np.array([1, 1, 2, 2], np.float32),
            "presence": np.eye(WIDTH, dtype=np.float32)[2],
            "inner": np.array([-1], np.int64),
        },
    )


def _ensemble(repository: Path, masks: dict[str, Any]) -> None:
    steps = {name: onnx.load(repository / name / "1" / "model.onnx").graph for name in _STEPS}
    image, prompt = steps.values()
    given = {value.name for value in image.output}
    lines = []
    for name, graph in steps.items():
        maps = [
            f'{role} {{ key: "{value.name}" value: "{value.name}" }}'
            for role, values in (("input_map", graph.input), ("output_map", graph.output))
            for value in values
        ]
        lines.append(f'{{ model_name: "{name}" model_version: -1 {" ".join(maps)} }}')
    folder = repository / "pathseg"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / ".gitkeep").touch()
    (folder / "config.pbtxt").write_text(
        f'name: "pathseg"\nplatform: "ensemble"\nmax_batch_size: {MOST_TILES}\n'
        + tensors_of("input", [*image.input, *(value for value in prompt.input if value.name not in given)])
        + tensors_of("output", prompt.output)
        + f"ensemble_scheduling {{ step [ {', '.join(lines)} ] }}\n"
    )
    write_card(folder, **_SAID, kind="ensemble", steps=list(_STEPS), **masks)
