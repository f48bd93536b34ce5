"""Vision transformers with the geometry of the encoders that we serve, and their operations counted.

ViT-L/14 as GPFM's backbone: patch 14, dim 1024, depth 24, 16 heads, MLP 4096, exact GELU, LayerNorm eps 1e-6,
LayerScale, learned CLS and positions, no registers. ViT-S/16: patch 16, dim 384, depth 12, 6 heads, the same otherwise.
The weights are random, so the figures speak of speed and arithmetic and never of a clinical result.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of a plain ViT for square images of `side_px`."""

    name: str
    patch_px: int
    dim: int
    depth: int
    heads: int
    side_px: int = 224

    @property
    def patches(self) -> int:
        return (self.side_px // self.patch_px) ** 2

    @property
    def tokens(self) -> int:
        return self.patches + 1

    @property
    def flops(self) -> int:
        """Floating-point operations per image in matrix products, two per multiply-add.

        Patch embedding, and per block the products qkv, q·kᵀ, softmax·v, proj and both MLP layers. Norms, softmax,
        GELU, biases and residuals are left out: they run beside the matrix units.
        """
        t, d = self.tokens, self.dim
        block = 2 * t * d * (3 * d + d + 8 * d) + 2 * (2 * t * t * d)
        return self.depth * block + 2 * self.patches * 3 * self.patch_px**2 * d


VIT_S16 = Geometry("ViT-S/16", 16, 384, 12, 6)
VIT_L14 = Geometry("ViT-L/14", 14, 1024, 24, 16)
VIT_TINY = Geometry("ViT-tiny/14", 14, 64, 2, 2, 56)


class Block(nn.Module):
    """A pre-norm block with LayerScale."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma1, self.gamma2 = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))
        self.folded = False

    def forward(self, x_BND: Tensor) -> Tensor:
        batch, tokens, dim = x_BND.shape
        q, k, v = self.qkv(self.norm1(x_BND)).view(batch, tokens, 3, self.heads, dim // self.heads).unbind(2)
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        y = self.proj(y.transpose(1, 2).reshape(batch, tokens, dim))
        x_BND = x_BND + (y if self.folded else y * self.gamma1)
        y = self.fc2(F.gelu(self.fc1(self.norm2(x_BND))))
        return x_BND + (y if self.folded else y * self.gamma2)


class ViT(nn.Module):
    """image (B,side,side,3) uint8 RGB to embedding (B,dim) fp32: the normalised CLS token."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.patch_px = geometry.patch_px
        self.register_buffer("mean", torch.tensor(MEAN) * 255)
        self.register_buffer("deviation", torch.tensor(DEVIATION) * 255)
        self.patch = nn.Linear(3 * geometry.patch_px**2, geometry.dim)
        self.cls = nn.Parameter(torch.zeros(1, 1, geometry.dim))
        self.positions = nn.Parameter(torch.zeros(1, geometry.tokens, geometry.dim))
        self.blocks = nn.ModuleList(Block(geometry.dim, geometry.heads) for _ in range(geometry.depth))
        self.norm = nn.LayerNorm(geometry.dim, eps=1e-6)

    def forward(self, image_BHWC: Tensor) -> Tensor:
        weight = self.patch.weight
        x_BHWC = (image_BHWC.to(torch.float32) - self.mean) / self.deviation
        batch, side, p = x_BHWC.shape[0], x_BHWC.shape[1] // self.patch_px, self.patch_px
        x_BNP = x_BHWC.view(batch, side, p, side, p, 3).permute(0, 1, 3, 2, 4, 5).reshape(batch, side * side, -1)
        # A row of 588 values is no multiple of the matrix units' step; zeros at its end change nothing but the speed.
        padding = -weight.shape[1] % 16
        x_BND = F.linear(F.pad(x_BNP.to(weight.dtype), (0, padding)), F.pad(weight, (0, padding)), self.patch.bias)
        x_BND = torch.cat((self.cls.expand(batch, -1, -1), x_BND), 1) + self.positions
        for block in self.blocks:
            x_BND = block(x_BND)
        return self.norm(x_BND[:, 0]).to(torch.float32)


def build(geometry: Geometry, seed: int = 0) -> ViT:
    """A ViT with seeded random weights, in fp32 on the CPU, ready for inference.

    LayerScale is drawn from 0.1 to 1 in place of its initial 1e-5: with 1e-5 the blocks would hardly touch the
    embedding, and a parity check could not see a wrong one.
    """
    generator = torch.Generator().manual_seed(seed)
    model = ViT(geometry)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gamma1", "gamma2")):
                parameter.uniform_(0.1, 1.0, generator=generator)
            elif "norm" not in name:
                parameter.normal_(0.0, 0.02, generator=generator)
    return model.eval().requires_grad_(False)


def fold_layer_scale(model: ViT) -> ViT:
    """Move every LayerScale into the linear layer before it, in place: the same function with fewer passes."""
    with torch.no_grad():
        for block in model.blocks:
            for layer, gamma in ((block.proj, block.gamma1), (block.fc2, block.gamma2)):
                layer.weight.mul_(gamma[:, None])
                layer.bias.mul_(gamma)
            block.folded = True
    return model


def to_precision(model: ViT, dtype: torch.dtype) -> ViT:
    """Weights to `dtype`, in place; the pixel constants stay fp32, so that images are normalised exactly."""
    mean, deviation = model.mean, model.deviation
    model.to(dtype)
    model.mean, model.deviation = mean, deviation
    return model
