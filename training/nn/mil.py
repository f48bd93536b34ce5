"""Heads over a bag of tile embeddings: ABMIL, TransMIL and two pools that attend to nothing.

Every head takes `features_BND`, N tiles of D numbers of B bags of one size (N ≥ 1; training and serving use B = 1), and
gives `logits_BC`. State-dict names are those of the published files, so that weights can be exchanged.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HeadKind = Literal["abmil", "transmil", "mean", "max"]


def build_head(kind: HeadKind, width: int, classes: int, hidden: int = 512) -> nn.Module:
    """A head of `width`-wide features with fresh weights, at the published sizes but for what `hidden` says."""
    return {"abmil": ABMIL, "transmil": TransMIL, "mean": MeanPool, "max": MaxPool}[kind](width, classes, hidden)


class ABMIL(nn.Module):
    """Attention pooling (arXiv 1802.04712, eq. 8: plain, not gated) over hidden = ReLU(W₁x + b₁)."""

    def __init__(self, width: int, classes: int, hidden: int = 512, attention: int = 128, dropout: float = 0.25):
        super().__init__()
        self.feature = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.attention = nn.Sequential(nn.Linear(hidden, attention), nn.Tanh(), nn.Linear(attention, 1))
        self.classifier = nn.Sequential(nn.Linear(hidden, classes))

    def forward(self, features_BND: Tensor) -> Tensor:
        return self.explain(features_BND)[0]

    def explain(self, features_BND: Tensor) -> tuple[Tensor, Tensor]:
        """(logits_BC, attention_BN); a bag's attention sums to one."""
        hidden_BNH = self.feature(features_BND)
        attention_BN1 = self.attention(hidden_BNH).softmax(1)
        return self.classifier((attention_BN1 * hidden_BNH).sum(1)), attention_BN1[..., 0]


class _Pool(nn.Module):
    """ABMIL's feature and classifier layers with a pool in between that has no weights."""

    def __init__(self, width: int, classes: int, hidden: int = 512, dropout: float = 0.25):
        super().__init__()
        self.feature = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.classifier = nn.Sequential(nn.Linear(hidden, classes))


class MeanPool(_Pool):
    """Every tile counts the same."""

    def forward(self, features_BND: Tensor) -> Tensor:
        return self.classifier(self.feature(features_BND).mean(1))


class MaxPool(_Pool):
    """The largest value of each hidden dimension counts."""

    def forward(self, features_BND: Tensor) -> Tensor:
        return self.classifier(self.feature(features_BND).amax(1))


class TransMIL(nn.Module):
    """Two Nyström layers with a convolutional position layer between them (arXiv 2106.00908, algorithm 1).

    The order of the tiles counts. `dropout` follows the first layer (0.25 in mSTAR's variant, 0 in the original).
    """

    def __init__(self, width: int, classes: int, dim: int = 512, dropout: float = 0.25):
        super().__init__()
        self._fc1 = nn.Sequential(nn.Linear(width, dim), nn.ReLU(), nn.Dropout(dropout))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 1e-6)
        self.layer1, self.layer2 = _Layer(dim), _Layer(dim)
        self.pos_layer = _Positions(dim)
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features_BND: Tensor) -> Tensor:
        h_BND = self._fc1(features_BND)
        count = h_BND.shape[1]
        # torch.sym_sqrt and math.ceil keep N free when the graph is exported.
        side = math.ceil(torch.sym_sqrt(count))
        h_BSD = torch.cat([h_BND, h_BND[:, : side * side - count]], 1)
        h_BTD = torch.cat([self.cls_token.expand(h_BSD.shape[0], -1, -1), h_BSD], 1)
        h_BTD = self.pos_layer(self.layer1(h_BTD), side)
        return self.classifier(self.norm(self.layer2(h_BTD)[:, 0]))


class _Layer(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attn = NystromAttention(dim, heads=8, landmarks=dim // 2)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + self.attn(self.norm(x_BTD))


class _Positions(nn.Module):
    """PPEG: depth-wise convolutions over the tiles as a square; the class row passes by (arXiv 2106.00908, fig. 4)."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.proj1 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.proj2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x_BTD: Tensor, side: int) -> Tensor:
        grid = x_BTD[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        grid = grid + self.proj(grid) + self.proj1(grid) + self.proj2(grid)
        return torch.cat([x_BTD[:, :1], grid.flatten(2).transpose(1, 2)], 1)


class NystromAttention(nn.Module):
    """Self-attention by landmarks (arXiv 2102.03902, eq. 13), with the inverse by six iterations (eq. 11).

    The sequence is padded with zero rows on the left to a multiple of the landmarks, as the published code does; the
    padded rows take part. The start value of the iteration is scaled by each bag's own maxima: a bag's answer does not
    depend on its neighbours (the published code shares them over the batch; the same for a batch of one).
    """

    def __init__(self, dim: int, heads: int, landmarks: int):
        super().__init__()
        self.heads, self.landmarks = heads, landmarks
        self.scale = (dim // heads) ** -0.5
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0.1))
        self.res_conv = nn.Conv2d(heads, heads, (33, 1), padding=(16, 0), groups=heads, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        length, landmarks = x_BTD.shape[1], self.landmarks
        each = (length + landmarks - 1) // landmarks
        padded = F.pad(x_BTD, (0, 0, each * landmarks - length, 0))
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.to_qkv(padded).chunk(3, 2))
        q = q * self.scale
        q_land, k_land = (part.unflatten(2, (landmarks, each)).mean(3) for part in (q, k))
        to_landmarks = (q @ k_land.mT).softmax(-1)
        among = (q_land @ k_land.mT).softmax(-1)
        from_landmarks = (q_land @ k.mT).softmax(-1)
        out = (to_landmarks @ self._inverse(among)) @ (from_landmarks @ v) + self.res_conv(v)
        return self.to_out(out.transpose(1, 2).flatten(2))[:, each * landmarks - length :]

    def _inverse(self, a_BHMM: Tensor) -> Tensor:
        """Moore-Penrose inverse, always in float32: the iteration loses what half precision cannot hold."""
        with torch.autocast(a_BHMM.device.type, enabled=False):
            a = a_BHMM.float()
            rows, columns = a.sum(-1).amax((1, 2)), a.sum(-2).amax((1, 2))
            z = a.mT / (rows * columns)[:, None, None, None]
            eye = torch.eye(a.shape[-1], device=a.device)
            for _ in range(6):
                az = a @ z
                z = 0.25 * z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az)))
        return z.to(a_BHMM.dtype)
