"""The cell detector: an image to a fixed number of boxes, each with six probabilities.

Deformable DETR (arXiv 2010.04159) in its plain form, without box refinement and without two stages, as Smart-CCS has it
(arXiv 2502.09662). Its classes are independent sigmoids. Images of a batch are of one size, so nothing is padded.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gateway.domain.bethesda import ABNORMAL
from training.nn.attention import Attention, Feed, sine_positions
from training.nn.checkpoints import load_state, read_weights
from training.runs import Pretraining, Run, parse_recipe
from training.smartccs.backbones import backbone_of, begin
from training.smartccs.deformable import DeformableAttention, Sizes, pixel_centres
from training.smartccs.recipe import DetectorNetwork, DetectorRecipe

_PRIOR = 0.01
"""What every class is given at the start: few queries find anything (arXiv 1708.02002, section 4.1)."""
_GROUPS = 32
_START_SIZE = -2.0
"""The logit of a box's width and height at the start."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What each of L decoder layers says of Q queries, the last one being the answer: class logits, and centre, width
    and height in 0..1."""

    logits_LBQC: Tensor
    boxes_LBQ4: Tensor


class EncoderLayer(nn.Module):
    """The maps' pixels look at one another; a norm after each branch."""

    def __init__(self, settings: DetectorNetwork, levels: int) -> None:
        super().__init__()
        width = settings.width
        self.attention = DeformableAttention(width, settings.heads, levels, settings.points)
        self.feed = Feed(width, settings.ffn, relu=True, dropout=settings.dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x_BMD: Tensor, positions_1MD: Tensor, centres_1M2: Tensor, sizes: Sizes) -> Tensor:
        seen = self.attention(x_BMD + positions_1MD, centres_1M2, x_BMD, sizes)
        x_BMD = self.norm1(x_BMD + self.dropout(seen))
        return self.norm2(x_BMD + self.dropout(self.feed(x_BMD)))


class DecoderLayer(nn.Module):
    """Queries look at one another, then at the maps; a norm after each branch."""

    def __init__(self, settings: DetectorNetwork, levels: int) -> None:
        super().__init__()
        width = settings.width
        self.self = Attention(width, settings.heads, settings.dropout)
        self.cross = DeformableAttention(width, settings.heads, levels, settings.points)
        self.feed = Feed(width, settings.ffn, relu=True, dropout=settings.dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(settings.dropout)

    def forward(
        self, x_BQD: Tensor, position_QD: Tensor, reference_1Q2: Tensor, memory_BMD: Tensor, sizes: Sizes
    ) -> Tensor:
        asked = x_BQD + position_QD
        x_BQD = self.norms[0](x_BQD + self.dropout(self.self(asked, asked, x_BQD, None)))
        seen = self.cross(x_BQD + position_QD, reference_1Q2, memory_BMD, sizes)
        x_BQD = self.norms[1](x_BQD + self.dropout(seen))
        return self.norms[2](x_BQD + self.dropout(self.feed(x_BQD)))


class Detector(nn.Module):
    """`forward` is what is served; `found` is what is trained. Begins without weights: see `initialise`."""

    def __init__(self, settings: DetectorNetwork) -> None:
        super().__init__()
        self.config = settings
        width = settings.width
        self.backbone = backbone_of(settings.backbone)
        widths = self.backbone.widths
        levels = len(widths) + 1
        self.project = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, width, 1), nn.GroupNorm(_GROUPS, width)) for inputs in widths
        )
        self.project.append(nn.Sequential(nn.Conv2d(widths[-1], width, 3, 2, padding=1), nn.GroupNorm(_GROUPS, width)))
        self.levels = nn.Parameter(torch.empty(levels, width))
        self.encoder = nn.ModuleList(EncoderLayer(settings, levels) for _ in range(settings.layers))
        self.queries = nn.Parameter(torch.empty(settings.queries, width))
        self.query_positions = nn.Parameter(torch.empty(settings.queries, width))
        self.reference = nn.Linear(width, 2)
        self.decoder = nn.ModuleList(DecoderLayer(settings, levels) for _ in range(settings.layers))
        self.classes = nn.Linear(width, len(ABNORMAL))
        self.box = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """scores (B,Q,6) and boxes (B,Q,4) of images (B,S,S,3) RGB uint8, as the engine has them."""
        found = self.found(image)
        return found.logits_LBQC[-1].sigmoid(), found.boxes_LBQ4[-1]

    def found(self, image_BHWC: Tensor) -> Found:
        """Every layer's answer to images (B,H,W,3) RGB uint8."""
        # Over channels that lie last, torch's group norm takes variances from sums of squares and loses digits, and
        # its backward pass on CPUs can crash (torch 2.13).
        image_B3HW = image_BHWC.float().permute(0, 3, 1, 2).contiguous()
        mean, std = (image_B3HW.new_tensor(values)[:, None, None] for values in self.backbone.scale)
        maps = self.backbone((image_B3HW - mean) / std)
        scales = [project(map_BCHW) for project, map_BCHW in zip(self.project, [*maps, maps[-1]], strict=True)]
        sizes = [(scale.shape[2], scale.shape[3]) for scale in scales]
        memory_BMD = torch.cat([scale.flatten(2).transpose(1, 2) for scale in scales], dim=1)
        memory_BMD = self._encoded(memory_BMD, sizes)

        # Written out, so that it stays in full precision: a half-precision place is as coarse as several pixels.
        centre_Q2 = (self.query_positions[:, None] * self.reference.weight).sum(-1) + self.reference.bias
        reference_Q2 = centre_Q2.sigmoid()
        x_BQD = self.queries.expand(memory_BMD.shape[0], -1, -1)
        logits, boxes = [], []
        for layer in self.decoder:
            x_BQD = layer(x_BQD, self.query_positions, reference_Q2[None], memory_BMD, sizes)
            box_BQ4 = self.box(x_BQD).float()
            boxes.append(torch.cat([box_BQ4[..., :2] + centre_Q2, box_BQ4[..., 2:]], dim=-1).sigmoid())
            logits.append(self.classes(x_BQD).float())
        return Found(torch.stack(logits), torch.stack(boxes))

    def _encoded(self, memory_BMD: Tensor, sizes: Sizes) -> Tensor:
        width, device = memory_BMD.shape[-1], memory_BMD.device
        places = [sine_positions(*size, width, device) + level for size, level in zip(sizes, self.levels, strict=True)]
        positions_1MD, centres_1M2 = torch.cat(places)[None], pixel_centres(sizes, device)
        for layer in self.encoder:
            memory_BMD = layer(memory_BMD, positions_1MD, centres_1M2, sizes)
        return memory_BMD


def initialise(network: Detector) -> tuple[Pretraining, ...]:
    """Fresh weights from torch's own stream, as the published code draws them; and what the backbone's came from, where
    the recipe names some. Raises WeightsInvalid, DataMissing."""
    pretraining = begin(network.backbone, network.config.backbone)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for project in network.project:
        nn.init.xavier_uniform_(project[0].weight)
        nn.init.zeros_(project[0].bias)
    for module in network.modules():
        if isinstance(module, DeformableAttention):
            module.initialise()
    for table in (network.levels, network.queries, network.query_positions):
        nn.init.normal_(table)
    nn.init.constant_(network.classes.bias, -math.log((1 - _PRIOR) / _PRIOR))
    nn.init.zeros_(network.box[-1].weight)
    with torch.no_grad():
        network.box[-1].bias[2:] = _START_SIZE
    return pretraining


def load(run: Run) -> Detector:
    """A finished run's network, frozen. Raises RecipeInvalid, WeightsInvalid."""
    network = Detector(parse_recipe(DetectorRecipe, run.recipe).network)
    load_state(network, read_weights(run.weights_path), run.name)
    return network.eval().requires_grad_(False)
