"""Transforms, embedding rules and functions, each against numbers that are known without them."""

import numpy as np
import pytest
import torch
from PIL import Image

from training.nn.vit import Tokens, ViT, ViTConfig, initialise
from training.pathbench.encoders import EncoderInvalid
from training.pathbench.encoders.functions import colour_histogram, lbp
from training.pathbench.encoders.networks import TokenEmbedder
from training.pathbench.encoders.transforms import Transform

pytestmark = pytest.mark.training

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def virchow2(depth: int = 0) -> ViT:
    """Virchow2's tokens at a small size: class, 4 registers, patches, all with positions."""
    config = ViTConfig(
        image_px=28, patch_px=14, width=8, depth=depth, heads=2, mlp=16, ffn="swiglu", registers=4, positions="all"
    )
    network = ViT(config).eval()
    initialise(network, torch.Generator().manual_seed(0))
    return network


def test_registers_never_count() -> None:
    """With the tokens from 1 on, as for Virchow, the mean would hold what the registers hold."""
    network, image = virchow2(), torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    embedder = TokenEmbedder(network, mean=True)
    with torch.inference_mode():
        before = embedder(image)
        tokens_before = network.norm(network(image).before_norm_BTD)
        network.reg_token.copy_(torch.tensor([1e4, -1e4]).repeat(4).expand(1, 4, 8))
        after = embedder(image)
        tokens = network.norm(network(image).before_norm_BTD)
    assert torch.equal(before, after)
    assert torch.allclose(after[0, 8:], tokens[0, 5:].mean(0))
    wrong, right = tokens[0, 1:].mean(0), tokens_before[0, 1:].mean(0)
    assert (wrong - right).abs().max() > 0.1


def test_the_class_token_comes_first_and_alone_where_the_rule_says_so() -> None:
    network, image = virchow2(depth=1), torch.zeros(1, 3, 28, 28)
    with torch.inference_mode():
        tokens: Tokens = network(image)
        assert torch.equal(TokenEmbedder(network, mean=False)(image), tokens.cls_BD)
        assert torch.equal(TokenEmbedder(network, mean=True)(image)[:, :8], tokens.cls_BD)
        assert TokenEmbedder(network, mean=False).dense(image).shape == (1, 2, 2, 8)


def test_squash_ignores_the_shape_and_crop_keeps_it() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[:, 50:150] = 255
    squash = Transform(side_px=50, fit="squash", interpolation="bilinear", resize_px=50)(image)
    crop = Transform(side_px=50, fit="crop", interpolation="bilinear", resize_px=50)(image)
    assert (squash.shape, squash.dtype) == ((50, 50, 3), torch.uint8)
    assert (squash[25, 0].tolist(), squash[25, 25].tolist()) == ([0] * 3, [255] * 3)
    assert (crop == 255).float().mean() > 0.95


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_pixels_are_pillow_s(name: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (300, 257, 3), dtype=np.uint8)
    found = Transform(side_px=224, fit="crop", interpolation=name, resize_px=256)(image)
    resized = Image.fromarray(image).resize((256, 298), getattr(Image.Resampling, name.upper()))
    assert np.array_equal(found.numpy(), np.asarray(resized)[37:261, 16:240])


def test_a_tile_of_the_right_size_is_only_scaled() -> None:
    image = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    found = Transform(side_px=56, fit="squash", interpolation="bicubic", resize_px=56, **IMAGENET)(image)
    due = (torch.from_numpy(image).float() / 255 - torch.tensor(IMAGENET["mean"])) / torch.tensor(IMAGENET["std"])
    assert torch.allclose(found, due.permute(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize(
    "tile",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
    ids=["float", "channels first", "grey", "empty"],
)
def test_what_is_no_tile_is_refused(tile: np.ndarray) -> None:
    with pytest.raises(EncoderInvalid, match=r"takes tiles \(height, width, 3\) of uint8 RGB"):
        Transform(side_px=8, fit="squash", interpolation="bicubic", resize_px=8)(tile)


def test_the_string_tells_transforms_apart() -> None:
    known = {
        str(Transform(side_px=224, fit=fit, interpolation=name, resize_px=px, **scale))
        for fit in ("squash", "crop")
        for name in ("bilinear", "bicubic")
        for px in (224, 256)
        for scale in ({}, IMAGENET)
    }
    assert len(known) == 12  # a squash has no other resize
    assert "squash to 224; Pillow bicubic; mean 0.485 0.456 0.406 std 0.229 0.224 0.225" in known


def test_a_colour_histogram_holds_shares() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2] = (255, 0, 0)
    histogram = colour_histogram(image)
    assert histogram[[0, 7 * 64]] == pytest.approx([0.5**0.5, 0.5**0.5])
    assert (histogram @ histogram, np.count_nonzero(histogram)) == (pytest.approx(1.0), 2)


def test_local_binary_patterns_see_texture_and_not_brightness() -> None:
    image = np.random.default_rng(0).integers(0, 100, (64, 64, 3), dtype=np.uint8)
    assert lbp(image).shape == (54,)
    assert np.abs(lbp(image) - lbp(image + 50)).max() < 0.01  # points between pixels round differently
    flat = lbp(np.full((64, 64, 3), 9, np.uint8))
    assert np.abs(lbp(image) - flat).max() > 0.5
