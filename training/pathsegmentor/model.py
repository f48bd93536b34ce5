"""PathSegmentor: an image and a sentence to a mask, and whether the object is there (arXiv 2506.20988).

Three parts that are served apart: `image_encoder` once an image, `text_encoder` once a prompt, `decode` for a pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.errors import RunInvalid
from training.nn.checkpoints import load_state, read_weights
from training.nn.focalnet import FocalNet
from training.pathsegmentor.attention import by_rows
from training.pathsegmentor.bert_text import BertTower
from training.pathsegmentor.decoder import Decoder, Heads, mask_logits
from training.pathsegmentor.pyramid import BilinearPyramid, ConvPyramid, Mask2FormerPyramid
from training.pathsegmentor.recipe import ConvEncoder, Encoder, Network, SegmentorRecipe, WordsText
from training.pathsegmentor.text import WordsTower, pooled
from training.runs import Run, parse_recipe
from training.ssl.model import IMAGENET


@dataclass(frozen=True, slots=True)
class Prediction:
    """mask_logits_BPSS at the image's resolution (the mask features', in the full network); presence_logit_BP;
    match_similarity_BP: cosine of the selected query with the text; layers: what the heads say at every depth, the last
    one being the answer's."""

    mask_logits_BPSS: Tensor
    presence_logit_BP: Tensor
    match_similarity_BP: Tensor
    layers: tuple[Heads, ...]


class PathSegmentor(nn.Module):
    """`vocabulary`: how many token ids the text tower knows, padding among them.

    Images are (N,3,H,W) float RGB in units of 0-255, H and W multiples of `multiple`.
    """

    mean, std = IMAGENET

    def __init__(self, network: Network, vocabulary: int) -> None:
        super().__init__()
        self.config = network
        self.encoder = _encoder(network.encoder)
        self.pyramid = _pyramid(self.encoder.widths, network)
        tower = WordsTower if isinstance(network.text, WordsText) else BertTower
        self.text = tower(vocabulary, network.width, network.text)
        self.pool = nn.Linear(network.width, network.width)
        strides = self.encoder.strides
        self.decoder = Decoder(network.width, network.decoder, [stride // strides[0] for stride in strides[:0:-1]])
        initialise(self)

    @property
    def width(self) -> int:
        return self.config.width

    @property
    def text_pool(self) -> str:
        return self.config.text_pool

    @property
    def multiple(self) -> int:
        """What an image's sides must be multiples of, px."""
        return self.encoder.strides[-1]

    def image_encoder(self, image_N3HW: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """Three scales, coarse to fine, and mask features at the finest map's stride; all `width` channels."""
        mean, std = (image_N3HW.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        scales, mask_features = self.pyramid(self.encoder((image_N3HW - mean) / std))
        return tuple(scales), mask_features

    def text_encoder(self, token_ids_PL: Tensor, token_mask_PL: Tensor) -> tuple[Tensor, Tensor]:
        """text_tokens (P,L,D) and text_global (P,D); the mask is 1 where a token is there."""
        tokens_PLD = self.text(token_ids_PL, token_mask_PL)
        return tokens_PLD, by_rows(self.pool, pooled(tokens_PLD, token_mask_PL, self.config.text_pool))

    def decode(
        self,
        scales: Sequence[Tensor],
        mask_features: Tensor,
        text_tokens_BPLD: Tensor,
        text_global_BPD: Tensor,
        text_mask_BPL: Tensor,
    ) -> Prediction:
        """Every prompt of every image, each alone."""
        layers = self.decoder(scales, mask_features, text_tokens_BPLD, text_global_BPD, text_mask_BPL)
        B, P, D = text_global_BPD.shape
        H, W = mask_features.shape[2:]
        last = layers[-1]
        chosen_NQ = selection(last.cosine_NQ)
        embedding_BPD = (chosen_NQ[..., None] * last.embedding_NQD).sum(1).reshape(B, P, D)
        features_BDM = mask_features.flatten(2)
        logits_BPHW = by_rows(lambda rows_BRD: rows_BRD @ features_BDM, embedding_BPD).unflatten(2, (H, W))
        if self.config.full_resolution:
            logits_BPHW = self._enlarged(logits_BPHW)
        presence_N = self.decoder.presence_logit(last, text_global_BPD.flatten(0, 1))
        similarity_N = (chosen_NQ * last.cosine_NQ).sum(-1)
        return Prediction(logits_BPHW, presence_N.reshape(B, P), similarity_N.reshape(B, P), tuple(layers))

    def _enlarged(self, logits_BPHW: Tensor) -> Tensor:
        """To the image's size, one channel at a time: how many prompts there are must not matter to any bit."""
        factor = float(self.encoder.strides[0])
        planes = logits_BPHW.flatten(0, 1)[:, None]
        planes = F.interpolate(planes, scale_factor=factor, mode="bilinear", align_corners=False)
        return planes.reshape(*logits_BPHW.shape[:2], *planes.shape[2:])

    def query_masks(self, heads: Heads, mask_features: Tensor) -> Tensor:
        """(N,Q,H,W): the mask logits of all queries at the mask features' resolution."""
        return mask_logits(heads.embedding_NQD, mask_features.flatten(2)).unflatten(2, mask_features.shape[2:])


def load(run: Run) -> PathSegmentor:
    """A finished run's network, frozen. Raises RecipeInvalid, RunInvalid, WeightsInvalid."""
    recipe = parse_recipe(SegmentorRecipe, run.recipe)
    vocabulary = run.metrics.get("network", {}).get("vocabulary")
    if vocabulary is None:
        raise RunInvalid(f"metrics.json of the run {run.path.name} names no vocabulary. Train it again.")
    network = PathSegmentor(recipe.network, vocabulary)
    load_state(network, read_weights(run.weights_path), run.name)
    return network.eval().requires_grad_(False)


def selection(cosine_NQ: Tensor) -> Tensor:
    """(N,Q): 1 at the query most like the text, 0 elsewhere. One arg max and a comparison: no gather."""
    place_Q = torch.arange(cosine_NQ.shape[1], device=cosine_NQ.device)
    return (place_Q == cosine_NQ.argmax(-1, keepdim=True)).to(cosine_NQ.dtype)


def _encoder(settings: Encoder) -> ConvPyramid | FocalNet:
    if isinstance(settings, ConvEncoder):
        return ConvPyramid(settings)
    return FocalNet(**settings.model_dump(exclude={"arch"}))


def _pyramid(widths: Sequence[int], network: Network) -> BilinearPyramid | Mask2FormerPyramid:
    if network.transformer is None:
        return BilinearPyramid(widths, network.width)
    return Mask2FormerPyramid(widths, network.width, network.transformer)


def initialise(network: PathSegmentor) -> None:
    """Fresh weights from torch's own stream: linear layers Xavier, convolutions He, tables normal 0.02 (queries and
    words normal 1, so that they differ from the start)."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in network.named_parameters():
        if name in ("decoder.positions", "decoder.levels", "text.positions") or name.endswith("_embeddings.weight"):
            nn.init.normal_(parameter, std=0.02)
        elif name in ("decoder.queries", "text.words.weight"):
            nn.init.normal_(parameter)
