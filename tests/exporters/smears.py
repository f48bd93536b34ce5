"""Finished runs of Smart-CCS that nobody trained: small networks with random weights, and the files of a run."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from gateway.domain.bethesda import NAMES
from gateway.slides.cell_crops import CellCrops
from gateway.slides.site_colour import Densities
from gateway.slides.site_state import Source
from tests.training.smartccs.tiny import detector_recipe
from training.data.common import Source as File
from training.nn.checkpoints import round_to_fp16, save_weights
from training.runs import Run, RunWriter, parse_recipe, read_toml
from training.smartccs.detector import Detector, initialise
from training.smartccs.heads import POOLS, HeadKind, build_head
from training.smartccs.recipe import DetectorRecipe
from training.ssl.model import begin, new_backbone
from training.ssl.recipe import SelfDistillationRecipe

TILE_PX, CROP_PX, WIDTH, QUERIES = 64, 16, 12, 5
SUPPORTED = ("NILM", "LSIL", "HSIL")

_PUBLISH = """
[publish]
title = "Untrained"
mpp = {mpp}
tile_px = {tile_px}
statement = "Tests."
organs = [{{ code = "71252005", scheme = "SCT", display = "Cervix" }}]
stains = ["PAP"]
limits = ["Nobody trained it."]
model = "{model}"
"""
_DETECT = detector_recipe(
    name="detect-tiny", queries=5, data_mpp=0.375, merging="top_k = 7", training="iterations = 2, validate_every = 2"
)
_PRETRAIN = """
name = "pretrain-tiny"
system = "smartccs"
stage = "pretrain"
seed = 6
iterations = 1
network = { arch = "vit", image_px = 16, patch_px = 8, width = 12, depth = 2, heads = 2, mlp = 16 }
crops = { global_px = 16, local_px = 8 }
dino = { prototypes = 4, hidden = 8, bottleneck = 4 }
ibot = {}
optim = { base_lr = 1e-3, epochs = 1, epoch_iterations = 1, warmup_epochs = 0 }
data = { corpus = "cytology", batch = 2 }
checkpoints = { every = 1 }
"""
_SLIDE = """
name = "slide-tiny"
system = "smartccs"
stage = "slide"
seed = 7
detector = "detect-tiny"
head = "{head}"
hidden = 8
seeds = 2
top_k = 7
encoder = {{ kind = "teacher", recipe = "pretrain-tiny", side_px = 16 }}
bags = {{ train = 4, validation = 40, test = 4 }}
"""
_NEEDS = 'encoder_model = "smartccs_embed"\ndetector_model = "smartccs_detect"\n'
_FIGURE = {"value": 0.8, "low": 0.7, "high": 0.9}
_FILES = (File("cytology/a.jpg", "CRIC", "0" * 64, "CC BY 4.0", "A", "", "block 1"),)


def detector_run(folder: Path, *, published: bool = True, seed: int = 5) -> Run:
    writer = _writer(folder, _DETECT, 0.375, TILE_PX, "smartccs_detect", published=published)
    network = Detector(parse_recipe(DetectorRecipe, read_toml(folder / "recipe.toml")).network)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        initialise(network)
        nn.init.normal_(network.box[-1].weight, std=0.5)  # else all boxes are alike
        nn.init.normal_(network.classes.weight, std=2.0)
    round_to_fp16(network)
    save_weights(writer.weights_path, network)
    many = [[40 if name in SUPPORTED else 0 for name in NAMES]] * 3
    test = {"fields": 9, "leading": {"sensitivity at 4 false alarms a field": _FIGURE}}
    return writer.finish(metrics={"cells": many, "test": test}, seed=5, data=_FILES)


def encoder_run(folder: Path, *, published: bool = True, seed: int = 6) -> Run:
    writer = _writer(folder, _PRETRAIN, 0.245, CROP_PX, "smartccs_embed", published=published)
    recipe = parse_recipe(SelfDistillationRecipe, read_toml(folder / "recipe.toml"))
    backbone = new_backbone(recipe.network, masked=True)
    begin(backbone, recipe.network, torch.Generator().manual_seed(seed))
    save_weights(writer.weights_path, backbone)
    return writer.finish(metrics={}, seed=6, data=_FILES)


def slide_run(folder: Path, encoder: Run, detector: Run | None, head: HeadKind = "mean", **served: object) -> Run:
    """`served` changes what the run says of its best head. Without a detector its cells were annotated."""
    text = _SLIDE.format(head=head)
    if detector is None:
        text = text.replace('detector = "detect-tiny"\n', "")
    writer = _writer(folder, text, 0.245, CROP_PX, "smartccs_slide", more=_NEEDS)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        heads = nn.ModuleList(build_head(head, WIDTH, 8) for _ in range(2))
        for each in heads:
            each.take_raw(torch.randn(WIDTH), torch.rand(WIDTH) + 0.5)
    save_weights(writer.weights_path, heads)
    metrics = {
        "test": {"bags": dict.fromkeys(NAMES, 2), **dict.fromkeys(("auc", "sensitivity", "specificity"), _FIGURE)},
        "served": {
            "head": 1,
            "width": WIDTH,
            "temperature": 1.25,
            "biases": [0.5, 0.0, 0.0, 0.0, 0.0, 0.0, -0.5],
            "abnormal_from": 0.4,
            "sensitivity": 0.95,
            "validation_centre": "source",
            "supported": {name: name in SUPPORTED for name in NAMES},
            "transform_sha256": CellCrops(CROP_PX).digest,
            "crop_context": 0.1,
            "crop_px": CROP_PX,
            "encoder_sha256": encoder.weights_sha256,
            "pool": POOLS[head],
            "top_k": 7,
            "source": source().record(),
            **served,
        },
    }
    parents = {"encoder": encoder} | ({"detector": detector} if detector else {})
    return writer.finish(metrics=metrics, seed=7, data=_FILES, starts_from=parents)


def source() -> Source:
    rng = np.random.default_rng(1)
    mean_D, deviation_D = rng.normal(size=WIDTH).astype(np.float32), rng.uniform(0.5, 2, WIDTH).astype(np.float32)
    return Source(Densities((0.3, 0.4, 0.2), (0.1, 0.2, 0.1)), mean_D, deviation_D, 0.25)


def _writer(
    folder: Path, text: str, mpp: float, tile_px: int, model: str, *, published: bool = True, more: str = ""
) -> RunWriter:
    if published:
        text += _PUBLISH.format(mpp=mpp, tile_px=tile_px, model=model) + more
    writer = RunWriter(folder, text.encode(), resume=False)
    writer.log("made")
    return writer
