"""The vision transformer: tokens, masks, positions, rows left out, and checkpoint names."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from training.nn.vit import Block, ViT, ViTConfig, chunked, initialise, interpolate_grid, unchunked

pytestmark = pytest.mark.training


def vit(**changes: object) -> ViT:
    shape = {"image_px": 56, "patch_px": 14, "width": 16, "depth": 2, "heads": 4, "mlp": 32}
    network = ViT(ViTConfig(**{**shape, **changes}))
    initialise(network, torch.Generator().manual_seed(0))
    return network


def pixels(side: int = 56, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("positions", "table"), [("all", 21), ("class", 17), ("patches", 16)])
def test_tokens_come_apart_whatever_has_positions(positions: str, table: int) -> None:
    network = vit(registers=4, positions=positions, layerscale=1.0).eval()
    assert network.pos_embed.shape == (1, table, 16)
    tokens = network(pixels())
    assert (tokens.cls_BD.shape, tokens.registers_BRD.shape, tokens.patches_BND.shape) == (
        (2, 16),
        (2, 4, 16),
        (2, 16, 16),
    )
    joined = torch.cat([tokens.cls_BD[:, None], tokens.registers_BRD, tokens.patches_BND], 1)
    assert torch.equal(joined, network.norm(tokens.before_norm_BTD))


def test_attention_is_that_of_the_formula() -> None:
    """One block by hand, with another attention kernel."""
    block = Block(vit().config).eval()
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2))
    y = block.norm1(x)
    q, k, v = (part.unflatten(2, (4, 4)).transpose(1, 2) for part in block.attn.qkv(y).chunk(3, dim=2))
    attended = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).flatten(2)
    due = x + block.attn.proj(attended)
    due = due + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(due))))
    assert torch.allclose(block(x), due, atol=1e-6)


def test_swiglu_gates_with_its_first_half() -> None:
    mlp = vit(ffn="swiglu").blocks[0].mlp
    x = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(3))
    gate, value = mlp.fc1(x)[..., :32], mlp.fc1(x)[..., 32:]
    assert torch.allclose(mlp(x), mlp.fc2(gate * gate.sigmoid() * value))


def test_a_masked_patch_shows_only_its_place() -> None:
    network = vit(mask_token=True, layerscale=1.0).eval()
    mask_BN = torch.zeros(2, 16, dtype=torch.bool)
    mask_BN[:, 5] = True
    image = pixels()
    other = image.clone()
    other[:, :, 14:28, 14:28] = 7.0  # the sixth patch
    assert torch.equal(network(image, mask_BN).cls_BD, network(other, mask_BN).cls_BD)
    assert not torch.equal(network(image).cls_BD, network(other).cls_BD)


def test_positions_of_their_own_grid_are_as_they_are_and_others_are_interpolated() -> None:
    network = vit().eval()
    assert torch.equal(network._positions(4, 4)[1], network.pos_embed[:, 1:])
    assert network(pixels(28)).patches_BND.shape == (2, 4, 16)
    table = torch.arange(16.0).reshape(1, 16, 1)
    grown = interpolate_grid(table, 4, 8, 6).reshape(8, 6)
    assert (grown.diff(dim=0) > -1e-4).all()
    explicit = F.interpolate(table.reshape(1, 1, 4, 4), (8, 6), mode="bicubic").reshape(8, 6)
    assert 1e-4 < (grown - explicit).abs().max() < 0.5  # DINOv2's factor (n + 0.1) / grid moves the points


def test_dropped_rows_stay_as_they_are_and_the_others_are_scaled() -> None:
    network = vit(drop_path=0.5, layerscale=1.0)
    block, x = network.blocks[0].train(), torch.ones(4, 3, 16)
    torch.manual_seed(0)
    y = block._add(x, lambda rows: torch.ones_like(rows))
    changed = (y != x).flatten(1).any(1)
    assert changed.sum() == 2
    assert (y[changed] == 3.0).all()
    assert torch.equal(block.eval()._add(x, lambda rows: torch.ones_like(rows)), x + 1)


def test_chunked_names_go_there_and_back() -> None:
    names = tuple(vit(layerscale=1e-5).state_dict())
    there = chunked(names, depth=2, chunks=2)
    assert there["blocks.1.attn.qkv.weight"] == "blocks.1.1.attn.qkv.weight"
    assert tuple(unchunked(tuple(there.values())).values()) == names


def test_fresh_weights_follow_the_seed_and_have_their_spread() -> None:
    one, same = vit(width=64, heads=4).state_dict(), vit(width=64, heads=4).state_dict()
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert float(one["blocks.0.attn.qkv.weight"].std()) == pytest.approx(0.02, rel=0.05)
    assert float(one["cls_token"].abs().max()) < 1e-5
    assert all(
        torch.equal(module.weight, torch.ones_like(module.weight))
        for module in vit().modules()
        if isinstance(module, nn.LayerNorm)
    )
