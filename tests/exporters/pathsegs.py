"""A finished run of PathSegmentor that nobody trained: a small network with random weights, and the files of a run."""

from pathlib import Path

import torch

from gateway.domain.prompts import words
from training.nn.checkpoints import round_to_fp16, save_weights
from training.pathsegmentor.model import PathSegmentor
from training.pathsegmentor.recipe import SegmentorRecipe
from training.runs import Run, RunWriter, parse_recipe, read_toml

TILE_PX = 32
PROMPTS = """level,object,region,train_images,val_dice,supported
nuclei,epithelial,colon,20,0.7100,true
nuclei,spindle,colon,20,0.3100,false
tissue,glomerulus,kidney,8,,false
"""

_RECIPE = f"""
name = "pathsegmentor-tiny"
system = "pathsegmentor"
stage = "segmentor"
seed = 3
mpp_by_level = {{ tissue = 1.0, cell = 0.25, nuclei = 0.25 }}

[data]
sets = ["consep"]
side_px = 32

[network]
width = 16
encoder = {{ arch = "conv", widths = [8, 8, 16, 16], convs = [1, 1, 1, 1] }}
text = {{ tower = "words", layers = 1, heads = 2, ffn = 16 }}
decoder = {{ queries = 4, layers = 3, heads = 2, ffn = 16 }}

[training]
iterations = 1
batch = 1
rate = 1e-3
warmup = 0
validate_every = 1

[publish]
model = "pathseg"
title = "Masks by words, untrained"
mpp = 0.25
tile_px = {TILE_PX}
statement = "Tests."
organs = [{{ code = "71854001", scheme = "SCT", display = "Colon" }}]
stains = ["HE"]
limits = ["Nobody trained it."]
"""


def untrained_run(folder: Path) -> Run:
    """The run folder of a network with random weights."""
    writer = RunWriter(folder, _RECIPE.encode(), resume=False)
    recipe = parse_recipe(SegmentorRecipe, read_toml(folder / "recipe.toml"))
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        network = PathSegmentor(recipe.network, len(words()))
    round_to_fp16(network)
    save_weights(writer.weights_path, network)
    (folder / "prompts.csv").write_text(PROMPTS)
    metrics = {
        "network": {"vocabulary": len(words())},
        "presence": {
            "tissue": {"threshold": 0.8, "temperature": 2.0, "youden": 0.9, "pooled": False},
            "cell": {"threshold": 0.5, "temperature": 1.5, "youden": 0.7, "pooled": True},
            "nuclei": {"threshold": 0.4, "temperature": 1.5, "youden": 0.6, "pooled": False},
        },
        "card": [{"name": "mean Dice", "value": 0.5, "low": 0.4, "high": 0.6, "images": 9, "label": "held-out groups"}],
    }
    return writer.finish(metrics=metrics, seed=recipe.seed)
