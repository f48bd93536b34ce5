"""A registry of one tiny published encoder, whose file a person has fetched and pinned."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from training.files import sha256_file
from training.nn.vit import ViT, ViTConfig, initialise
from training.pathbench.encoders import cards

TINY = """
title = "Tiny"
licence = "Tiny-1.0"
gated = true
commercial_ok = false
derivatives_ok = false
pretraining = ["nothing"]
dim = 64
parameters = "few"
embedding = "class token, mean of patch tokens"
field_um = 112
side_px = 56
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
weights = { source = "hub", hub = "somebody/tiny", file = "tiny.safetensors" }

[transforms]
native = { fit = "crop", interpolation = "bicubic" }
pb = { fit = "squash", interpolation = "bicubic" }

[architecture]
kind = "vit"
image_px = 56
patch_px = 14
width = 32
depth = 2
heads = 2
mlp = 64
layerscale = 1e-5
registers = 4
positions = "all"
"""


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATHSERVE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PATHSERVE_WEIGHTS", str(tmp_path / "weights"))


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make a card's text the one entry, `tiny`, of the registry; again, to change it."""

    def put(text: str) -> None:
        write_registry(tmp_path / "registry", tiny=text)
        cards._card.cache_clear()

    monkeypatch.setattr(cards, "FOLDER", tmp_path / "registry")
    return put


@pytest.fixture
def tiny(register: Callable[[str], None], tmp_path: Path) -> Path:
    """The tiny encoder's weights file, as a person leaves it."""
    register(TINY)
    return fetch(tmp_path / "weights", learned())


def write_registry(folder: Path, **texts: str) -> None:
    """A registry of these cards' texts."""
    (folder / "cards").mkdir(parents=True, exist_ok=True)
    (folder / "registry.toml").write_text("".join(f'{name} = "{name}.toml"\n' for name in texts))
    for name, text in texts.items():
        (folder / "cards" / f"{name}.toml").write_text(text)


def learned(seed: int = 1, **changes: object) -> dict[str, torch.Tensor]:
    """Weights of a tiny ViT that are nowhere as they began."""
    shape = {"image_px": 56, "patch_px": 14, "width": 32, "depth": 2, "heads": 2, "mlp": 64, "layerscale": 1e-5}
    network = ViT(ViTConfig(**{**shape, "registers": 4, "positions": "all", **changes}))
    generator = torch.Generator().manual_seed(seed)
    initialise(network, generator)
    return {
        key: value + 0.1 * torch.randn(value.shape, generator=generator) for key, value in network.state_dict().items()
    }


def fetch(folder: Path, tensors: dict[str, torch.Tensor], *, pinned: bool = True) -> Path:
    path = folder / "tiny" / "tiny.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    if pinned:
        (path.parent / "sha256.txt").write_text(f"{sha256_file(path)}  tiny.safetensors\n")
    return path
