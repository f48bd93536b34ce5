"""Attention that looks at a few places of several maps (Deformable DETR, arXiv 2010.04159, section 4.1).

Written with one `grid_sample` a map and plain products, so that it exports as such: there is no operator of our own.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Sizes = Sequence[tuple[int, int]]
"""Height and width of each map, fine to coarse."""


class DeformableAttention(nn.Module):
    """Each query looks at `points` places of each of `levels` maps in each of `heads`, around its reference point.

    A place is the reference plus an offset in units of the map's pixels, `ref + offset / (width, height)` in 0..1 of
    its extent; what lies there is read bilinearly, with pixel centres half a pixel inside and zeros beyond the border.
    The places of all maps share one softmax.
    """

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        self.weights = nn.Linear(width, heads * levels * points)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, query_BQD: Tensor, reference_BQ2: Tensor, value_BMD: Tensor, sizes: Sizes) -> Tensor:
        """(B,Q,D). `reference`: (x, y) in 0..1, of a batch or the same for all of it; `value`: the pixels of all maps,
        fine to coarse, row by row, M in all."""
        B, Q = query_BQD.shape[:2]
        heads = (self.heads, self.levels, self.points)
        offset_BQhlp2 = self.offsets(query_BQD).unflatten(-1, (*heads, 2))
        weight_BQhlp = self.weights(query_BQD).unflatten(-1, (self.heads, -1)).softmax(-1).unflatten(-1, heads[1:])
        value_BDM = self.value(value_BMD).transpose(1, 2)
        maps_BDm = value_BDM.split([height * width for height, width in sizes], dim=2)
        total = 0.0
        for level, ((height, width), map_BDm) in enumerate(zip(sizes, maps_BDm, strict=True)):
            pixel_2 = offset_BQhlp2.new_tensor([1.0 / width, 1.0 / height])
            at_BQhp2 = reference_BQ2[:, :, None, None] + offset_BQhlp2[:, :, :, level] * pixel_2
            grid_NQp2 = (2 * at_BQhp2 - 1).transpose(1, 2).reshape(B * self.heads, Q, self.points, 2)
            map_NCHW = map_BDm.reshape(B * self.heads, -1, height, width)
            # In half precision a place's coordinate would be as coarse as a pixel.
            found_NCQp = F.grid_sample(map_NCHW.float(), grid_NQp2.float(), align_corners=False)
            share_NQp = weight_BQhlp[:, :, :, level].transpose(1, 2).reshape(B * self.heads, 1, Q, self.points)
            total = total + (found_NCQp * share_NQp).sum(-1)
        return self.out(total.reshape(B, -1, Q).transpose(1, 2))

    def initialise(self) -> None:
        """Offsets begin without regard to the query: each head along its own direction, each point one pixel farther;
        weights begin equal (published code of arXiv 2010.04159)."""
        angle_h = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction_h2 = torch.stack([angle_h.cos(), angle_h.sin()], dim=-1)
        direction_h2 = direction_h2 / direction_h2.abs().max(-1, keepdim=True).values
        reach_p = torch.arange(1, self.points + 1)[:, None]
        bias = (direction_h2[:, None, None] * reach_p).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.offsets.bias.copy_(bias.flatten())
        for zero in (self.offsets.weight, self.weights.weight, self.weights.bias):
            nn.init.zeros_(zero)
        for layer in (self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


def pixel_centres(sizes: Sizes, device: torch.device) -> Tensor:
    """(1,M,2): (x, y) of the pixels' centres of all maps in 0..1, in the order of the maps' pixels."""
    found = []
    for height, width in sizes:
        y, x = ((torch.arange(count, device=device) + 0.5) / count for count in (height, width))
        found.append(torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(0, 1))
    return torch.cat(found)[None]
