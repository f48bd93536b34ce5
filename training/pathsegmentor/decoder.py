"""Queries that attend to an image's scales and to a prompt's words, and give masks and a presence score.

Mask2Former's masked decoder (arXiv 2112.01527) with SEEM's joint self-attention of queries and text (arXiv 2304.06718),
as PathSegmentor has it (arXiv 2506.20988, Methods). Different from the published code: each prompt is decoded alone,
so that its answer does not depend on what else is asked; and a presence head says whether the object is there at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.nn.attention import Attention, Feed, sine_positions
from training.pathsegmentor.attention import by_rows, hide
from training.pathsegmentor.recipe import DecoderSettings


@dataclass(frozen=True, slots=True)
class Heads:
    """What the heads say of N = batch·prompts pairs at one depth: mask embeddings (N,Q,D), cosines with the text
    (N,Q), queries after the norm (N,Q,D)."""

    embedding_NQD: Tensor
    cosine_NQ: Tensor
    queries_NQD: Tensor


class DecoderLayer(nn.Module):
    """Cross-attention to one scale, self-attention with the text, feed-forward."""

    def __init__(self, width: int, settings: DecoderSettings) -> None:
        super().__init__()
        self._pre = settings.norm == "pre"
        self.cross, self.self = Attention(width, settings.heads), Attention(width, settings.heads)
        self.feed = Feed(width, settings.ffn, relu=not self._pre)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(
        self,
        x_NQD: Tensor,
        positions_QD: Tensor,
        keys_BMD: Tensor,
        values_BMD: Tensor,
        bias_NQM: Tensor,
        text_NLD: Tensor,
        text_bias: Tensor,
    ) -> Tensor:
        B, M = keys_BMD.shape[:2]
        N, Q, D = x_NQD.shape
        # All prompts of an image ask its keys at once; a query sees nothing of another prompt.
        y = self.norms[0](x_NQD) if self._pre else x_NQD
        asked = (y + positions_QD).reshape(B, -1, D)
        seen = self.cross(asked, keys_BMD, values_BMD, bias_NQM.reshape(B, 1, -1, M)).reshape(N, Q, D)
        x_NQD = x_NQD + seen if self._pre else self.norms[0](x_NQD + seen)

        y, words = (self.norms[1](x_NQD), self.norms[1](text_NLD)) if self._pre else (x_NQD, text_NLD)
        asked = y + positions_QD
        seen = self.self(asked, torch.cat([asked, words], dim=1), torch.cat([y, words], dim=1), text_bias)
        x_NQD = x_NQD + seen if self._pre else self.norms[1](x_NQD + seen)

        if self._pre:
            return x_NQD + self.feed(self.norms[2](x_NQD))
        return self.norms[2](x_NQD + self.feed(x_NQD))


class Decoder(nn.Module):
    """Scales, mask features and text to `Heads` at the start and after every layer."""

    def __init__(self, width: int, settings: DecoderSettings, ratios: Sequence[int]) -> None:
        """`ratios`: each scale's stride, coarse to fine, in units of the mask features' stride."""
        super().__init__()
        self._ratios, self._sine, self._from_text = tuple(ratios), settings.sine, settings.query_per_prompt
        if not self._from_text:
            self.queries = nn.Parameter(torch.empty(settings.queries, width))
        self.positions = nn.Parameter(torch.empty(settings.queries, width))
        self.levels = nn.Parameter(torch.empty(len(ratios), width))
        self.layers = nn.ModuleList(DecoderLayer(width, settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(width)
        self.mask = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.match = nn.Linear(width, width)
        self.presence = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(
        self,
        scales: Sequence[Tensor],
        mask_features_BDHW: Tensor,
        text_tokens_BPLD: Tensor,
        text_global_BPD: Tensor,
        text_mask_BPL: Tensor,
    ) -> list[Heads]:
        text_NLD, global_ND = text_tokens_BPLD.flatten(0, 1), text_global_BPD.flatten(0, 1)
        keys, values, pooled = zip(*self._scales(scales, mask_features_BDHW), strict=True)
        start_NQD = global_ND[:, None] if self._from_text else self.queries.expand(global_ND.shape[0], -1, -1)
        hidden = hide(text_mask_BPL.flatten(0, 1))[:, None, None]
        text_bias = F.pad(hidden, (self.positions.shape[0], 0))
        heads = [self._heads(start_NQD, global_ND)]
        x_NQD = start_NQD
        for number, layer in enumerate(self.layers):
            scale = number % len(keys)
            bias = _attended(heads[-1].embedding_NQD, pooled[scale])
            x_NQD = layer(x_NQD, self.positions, keys[scale], values[scale], bias, text_NLD, text_bias)
            heads.append(self._heads(x_NQD, global_ND))
        return heads

    def presence_logit(self, heads: Heads, global_ND: Tensor) -> Tensor:
        """(N,): from the queries in proportion to their likeness with the text, and the text."""
        summary = (heads.cosine_NQ.softmax(-1)[..., None] * heads.queries_NQD).sum(1)
        return by_rows(self.presence, torch.cat([summary, global_ND], dim=-1)).squeeze(-1)

    def _scales(self, scales: Sequence[Tensor], mask_features_BDHW: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Each scale's keys and values (B,M,D), and the mask features at its resolution (B,D,M)."""
        parts = []
        for ratio, scale, level in zip(self._ratios, scales, self.levels, strict=True):
            values = scale.flatten(2).transpose(1, 2) + level
            keys = values
            if self._sine:
                keys = values + sine_positions(scale.shape[2], scale.shape[3], scale.shape[1], scale.device)
            parts.append((keys, values, F.avg_pool2d(mask_features_BDHW.detach(), ratio).flatten(2)))
        return parts

    def _heads(self, x_NQD: Tensor, global_ND: Tensor) -> Heads:
        x_NQD = self.norm(x_NQD)
        match_NQD = F.normalize(self.match(x_NQD), dim=-1)
        cosine_NQ = (match_NQD * F.normalize(global_ND, dim=-1)[:, None]).sum(-1)
        return Heads(self.mask(x_NQD), cosine_NQ, x_NQD)


@torch.no_grad()
def _attended(embedding_NQD: Tensor, pooled_BDM: Tensor) -> Tensor:
    """(N,Q,M), to add to scores: a query sees where its mask so far is at least as likely as not; one whose mask is
    empty sees everything. The masks at a scale's resolution are products with averaged mask features."""
    logits_NQM = mask_logits(embedding_NQD, pooled_BDM)
    keep_NQM = (logits_NQM >= 0).float()
    some_NQ1 = keep_NQM.amax(-1, keepdim=True)
    return hide(keep_NQM + (1.0 - some_NQ1))


def mask_logits(embedding_NQD: Tensor, features_BDM: Tensor) -> Tensor:
    """(N,Q,M): each query's mask logits at each place."""
    B, D, M = features_BDM.shape
    N, Q, _ = embedding_NQD.shape
    return (embedding_NQD.reshape(B, -1, D) @ features_BDM).reshape(N, Q, M)
