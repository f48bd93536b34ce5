"""The text-prompted network with its losses: pairs of crop and prompt to what a step costs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gateway.domain.prompts import Triple, token_ids, words
from training.pathsegmentor.bert_text import begin_text
from training.pathsegmentor.data import Batch
from training.pathsegmentor.losses import Target, averaged, losses
from training.pathsegmentor.model import PathSegmentor
from training.pathsegmentor.predictor import WORDS_AT
from training.pathsegmentor.pyramid import to_image
from training.pathsegmentor.recipe import SegmentorRecipe, WordsText


class SegmentorLearner(nn.Module):
    """A batch of N crops, each with one prompt, to the parts of the loss."""

    def __init__(self, recipe: SegmentorRecipe) -> None:
        super().__init__()
        self._recipe = recipe
        self.model = PathSegmentor(recipe.network, len(words()))
        self.log_scale = nn.Parameter(torch.ones(()))
        text = recipe.network.text
        self.pretraining = () if isinstance(text, WordsText) else begin_text(self.model.text, text, words())

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        device = self.log_scale.device
        ids_NL, mask_NL = (values.to(device) for values in self._tokens(batch.triples))
        with torch.autocast(device.type, torch.bfloat16, enabled=self._recipe.training.precision == "bf16"):
            scales, features = self.model.image_encoder(to_image(batch.image_BHWC, device))
            tokens_NLD, global_ND = self.model.text_encoder(ids_NL, mask_NL)
            layers = self.model.decoder(scales, features, tokens_NLD[:, None], global_ND[:, None], mask_NL[:, None])
            presence_N = self.model.decoder.presence_logit(layers[-1], global_ND)
        mask_NHW, valid_NHW = (
            torch.from_numpy(values).to(device).float() for values in (batch.mask_BHW, batch.valid_BHW)
        )
        if self._recipe.loss.points is None:
            mask_NHW, valid_NHW = averaged(mask_NHW, valid_NHW, self.model.encoder.strides[0])
        target = Target(mask_NHW, valid_NHW, torch.from_numpy(batch.present_B).to(device).float())
        layers = [
            replace(heads, embedding_NQD=heads.embedding_NQD.float(), cosine_NQ=heads.cosine_NQ.float())
            for heads in layers
        ]
        return losses(layers, features.float(), presence_N.float(), self.log_scale, target, self._recipe.loss)

    def answer(self, model: nn.Module, image_NHWC: np.ndarray, triples: Sequence[Triple]) -> Tensor:
        """(N,H,W): mask logits of each crop's prompt by `model`, which is this learner's or an average of it."""
        device = self.log_scale.device
        ids_NL, mask_NL = (values.to(device) for values in self._tokens(triples))
        scales, features = model.image_encoder(to_image(image_NHWC, device))
        tokens_NLD, global_ND = model.text_encoder(ids_NL, mask_NL)
        found = model.decode(scales, features, tokens_NLD[:, None], global_ND[:, None], mask_NL[:, None])
        logits_N1HW = found.mask_logits_BPSS
        if logits_N1HW.shape[-1] != image_NHWC.shape[2]:
            logits_N1HW = nn.functional.interpolate(logits_N1HW, size=image_NHWC.shape[1:3], mode="bilinear")
        return logits_N1HW[:, 0]

    def figures(self) -> Mapping[str, Any]:
        """What the run's figures say of the network itself."""
        count = sum(parameter.numel() for parameter in self.model.parameters())
        return {"parameters": count, "vocabulary": len(words())}

    def _tokens(self, triples: Sequence[Triple]) -> tuple[Tensor, Tensor]:
        ids_NL, mask_NL = token_ids(triples)
        mask_NL = mask_NL.copy()
        mask_NL[:, [WORDS_AT[word] for word in self._recipe.data.without]] = 0
        return torch.from_numpy(ids_NL), torch.from_numpy(mask_NL)
