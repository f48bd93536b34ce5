"""A data folder of one set whose kinds differ in colour, and tiny runs of every stage on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from tests.training.small_data import COLUMNS, write_manifest
from training.data.crc9 import CLASSES
from training.files import sha256_file
from training.gpfm import train
from training.runs import Run

EACH, TILE_PX = 5, 224

PUBLISH = """
publish = {model = "tile_encoder", title = "Test", mpp = 0.5, tile_px = 224, statement = "Test.", stains = ["HE"],\
 organs = [], limits = ["Test."]}
checkpoints = {every = 2}
"""
NETWORK = 'network = {arch = "vit", image_px = 32, patch_px = 16, width = 12, depth = 1, heads = 2, mlp = 16}\n'
LABELLED = """
name = "NAME"
system = "gpfm"
stage = "STAGE"
seed = 3
sets = ["crc9"]
crops = {global_px = 32, local_px = 16}
augment = {}
training = {iterations = 4, batch = 8, rate = 1e-3, warmup = 1, decay = 0.05}
"""
SSL = """
name = "NAME"
system = "gpfm"
stage = "STAGE"
seed = 3
iterations = 4
log_every = 1
crops = {global_px = 32, local_px = 16, local_count = 2}
dino = {prototypes = 16, hidden = 16, bottleneck = 8}
ibot = {}
teacher = {momentum = [0.5, 0.9], temp_warmup_epochs = 2}
optim = {base_lr = 0.02, epochs = 20, epoch_iterations = 1, warmup_epochs = 1}
data = {sets = ["crc9"], batch = 4}
"""
STUDENT = """
network = {arch = "vit", image_px = 32, patch_px = 8, width = 16, depth = 2, heads = 2, mlp = 32, layerscale = 0.1,\
 drop_path = 0.2}
"""
KD = """
[kd]
head = {bottleneck = 8}

[[kd.experts]]
name = "tissue"
run = "tissue"
dim = 12
grid = 2
cls = 1.0
patch = 0.25

[[kd.experts]]
name = "ssl"
run = "plain"
dim = 12
grid = 2
cls = 0.5
patch = 0.125

[[kd.experts]]
name = "text"
run = "text"
dim = 6
cls = 1.0
normalize = "l2"
"""
RECIPES = {
    "tissue": LABELLED.replace("STAGE", "expert-supervised") + NETWORK + PUBLISH,
    "text": "dim = 6\n" + LABELLED.replace("STAGE", "expert-contrastive") + NETWORK + PUBLISH,
    "plain": SSL.replace("STAGE", "expert-ssl") + NETWORK + PUBLISH,
    "student": SSL.replace("STAGE", "distill") + STUDENT + PUBLISH + KD,
}


@pytest.fixture(scope="session")
def gpfm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, `runs` and `recipes` side by side."""
    root = tmp_path_factory.mktemp("gpfm")
    (root / "data" / "he_crc9" / "images").mkdir(parents=True)
    (root / "recipes").mkdir()
    rng, rows = np.random.default_rng(5), []
    for place, label in enumerate(CLASSES):
        for number in range(EACH):
            colour = np.array([190 if place >> channel & 1 else 60 for channel in range(3)])
            coarse = np.clip(colour + rng.normal(0, 40, (9, 9, 3)), 0, 255).astype(np.uint8)
            path = f"he_crc9/images/{label.replace(' ', '-')}-{number}.jpg"
            tile = cv2.resize(coarse, (TILE_PX, TILE_PX), interpolation=cv2.INTER_CUBIC)
            (root / "data" / path).write_bytes(simplejpeg.encode_jpeg(tile, quality=90))
            digest = sha256_file(root / "data" / path)
            rows.append(dict(zip(COLUMNS, (path, "synthetic", label, digest, "CC0", "A"), strict=True)))
    write_manifest(root / "data", rows)
    for name, text in RECIPES.items():
        (root / "recipes" / f"{name}.toml").write_text(text.replace("NAME", name))
    return root


@contextmanager
def environment(folder: Path) -> Iterator[None]:
    """Data and runs of this folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATHSERVE_DATA", str(folder / "data"))
        patch.setenv("PATHSERVE_RUNS", str(folder / "runs"))
        yield


@pytest.fixture(autouse=True)
def here(gpfm_folder: Path) -> Iterator[None]:
    with environment(gpfm_folder):
        yield


def trained(folder: Path, name: str) -> Run:
    with environment(folder):
        run = train.train(folder / "recipes" / f"{name}.toml")
    assert run is not None
    return run


@pytest.fixture(scope="session")
def experts(gpfm_folder: Path) -> dict[str, Run]:
    """The three experts' runs."""
    return {name: trained(gpfm_folder, name) for name in ("tissue", "text", "plain")}


@pytest.fixture(scope="session")
def student(gpfm_folder: Path, experts: dict[str, Run]) -> Run:
    return trained(gpfm_folder, "student")
