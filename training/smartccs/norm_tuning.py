"""Adaptation of the encoder's norms, for research: what others do at test time, and moments matched in the same way.

Only the scales and shifts of norm layers are trained, on a batch of slides without labels; the rest of the encoder and
the head stay. `stat` brings the moments of NILM-weighted features to the source's and begins anew with each batch.
The baselines go on from batch to batch: `tent` (arXiv 2006.10726) makes answers surer; `sar` (arXiv 2302.12400) does so
for sure slides only, against the worst nearby weights, and begins anew when everything has become sure; `ema` (after
CoTTA, arXiv 2203.13591) follows a slow teacher's answers to the mirrored view.
"""

import copy
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from gateway.domain.bethesda import CLASSES, NILM
from gateway.slides.site_state import Source
from training.smartccs.heads import SlideHead

Method = Literal["stat", "tent", "sar", "ema"]
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)
_STEPS: dict[Method, int] = {"stat": 8, "tent": 1, "sar": 1, "ema": 1}
_CELLS = 8
"""Cells of each slide that an update rests on: gradients of all would neither fit in memory nor end soon. Answers rest
on all."""
_TOGETHER = 64
_MARGIN = 0.4 * float(np.log(len(CLASSES)))
"""Of the entropy of a slide that is sure; the published constant is for 1000 classes."""
_RADIUS, _RESET_BELOW, _ENTROPY_KEPT, _TEACHER_KEPT = 0.05, 0.2, 0.9, 0.99


class NormTuning:
    """An encoder whose norms follow the batches that it is shown. The encoder and head given are left as they are.
    `steps`: of the optimiser, so far; `begun_anew`: how often what was learned was given up."""

    def __init__(
        self, encoder: nn.Module, head: SlideHead, source: Source, method: Method, *, rate: float = 1e-3
    ) -> None:
        self._given, self._head, self._source, self._method, self._rate = encoder, head, source, method, rate
        self.steps = self.begun_anew = 0
        self._begin()

    def _begin(self) -> None:
        self._encoder = copy.deepcopy(self._given).eval().requires_grad_(False)
        self._teacher = copy.deepcopy(self._encoder)
        self._tuned = norm_parameters(self._encoder)
        for parameter in self._tuned:
            parameter.requires_grad_(True)
        self._optimiser = torch.optim.Adam(self._tuned, lr=self._rate)
        self._entropy: float | None = None

    def update(self, crops: Sequence[np.ndarray]) -> None:
        """The steps that a batch of slides brings, of each the crops (K,S,S,3) uint8."""
        if self._method == "stat":
            self._begin()
        some = [_spread(slide_KHWC) for slide_KHWC in crops]
        for _ in range(_STEPS[self._method]):
            if self._method == "sar":
                self._sharpness_aware(some)
            else:
                self._step(self._loss(some))
        if self._method == "ema":
            with torch.no_grad():
                for mine, theirs in zip(norm_parameters(self._teacher), self._tuned, strict=True):
                    mine.lerp_(theirs, 1 - _TEACHER_KEPT)

    @torch.inference_mode()
    def features(self, crops_NHWC: np.ndarray) -> np.ndarray:
        """(N,D) of crops (N,S,S,3) uint8, as the norms are now; of `ema` the teacher's."""
        network = self._teacher if self._method == "ema" else self._encoder
        return torch.cat([network(part) for part in torch.from_numpy(crops_NHWC).split(_TOGETHER)]).numpy()

    def _step(self, loss: Tensor) -> None:
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        self.steps += 1

    def _loss(self, crops: Sequence[np.ndarray]) -> Tensor:
        if self._method == "stat":
            return self._moments(torch.cat(_split(self._encoder, crops)))
        if self._method == "ema":
            with torch.no_grad():
                taught_BC = self._answers(self._teacher, crops).softmax(1)
            mirrored = [np.ascontiguousarray(slide_KHWC[:, :, ::-1]) for slide_KHWC in crops]
            return -(taught_BC * self._answers(self._encoder, mirrored).log_softmax(1)).sum(1).mean()
        return _entropy(self._answers(self._encoder, crops)).mean()

    def _moments(self, features_ND: Tensor) -> Tensor:
        source = self._source
        with torch.no_grad():
            here = torch.ones(1, len(features_ND), dtype=torch.bool)
            cells_NC = self._head.pooled(features_ND[None], here).cell_logits_BNC[0].softmax(1)
            shares_N1 = (cells_NC[:, NILM] / cells_NC[:, NILM].sum())[:, None]
        mean_D = (shares_N1 * features_ND).sum(0)
        deviation_D = ((shares_N1 * (features_ND - mean_D).square()).sum(0) + 1e-12).sqrt()
        aim_D, scale_D = torch.from_numpy(source.mean_D), torch.from_numpy(source.deviation_D)
        return ((mean_D - aim_D) / scale_D).square().mean() + ((deviation_D - scale_D) / scale_D).square().mean()

    def _sharpness_aware(self, crops: Sequence[np.ndarray]) -> None:
        entropy_B = _entropy(self._answers(self._encoder, crops))
        sure_B = entropy_B < _MARGIN
        if not sure_B.any():
            return
        gradients = torch.autograd.grad(entropy_B[sure_B].mean(), self._tuned)
        length = torch.stack([gradient.norm() for gradient in gradients]).norm() + 1e-12
        kept = [parameter.detach().clone() for parameter in self._tuned]
        with torch.no_grad():
            for parameter, gradient in zip(self._tuned, gradients, strict=True):
                parameter.add_(gradient * (_RADIUS / length))
        worst_B = _entropy(self._answers(self._encoder, [crops[slide] for slide in torch.nonzero(sure_B)[:, 0]]))
        still_B = worst_B < _MARGIN
        self._optimiser.zero_grad()
        if still_B.any():
            worst_B[still_B].mean().backward()
        with torch.no_grad():
            for parameter, value in zip(self._tuned, kept, strict=True):
                parameter.copy_(value)
        if not still_B.any():
            return
        self._optimiser.step()
        self.steps += 1
        now = float(worst_B[still_B].mean().detach())
        self._entropy = now if self._entropy is None else _ENTROPY_KEPT * self._entropy + (1 - _ENTROPY_KEPT) * now
        if self._entropy < _RESET_BELOW:
            self.begun_anew += 1
            self._begin()

    def _answers(self, encoder: nn.Module, crops: Sequence[np.ndarray]) -> Tensor:
        """(B,7), with gradient."""
        features = _split(encoder, crops)
        sizes_B1 = torch.tensor([[len(cells_KD)] for cells_KD in features])
        padded_BND = nn.utils.rnn.pad_sequence(features, batch_first=True)
        return self._head.pooled(padded_BND, torch.arange(padded_BND.shape[1]) < sizes_B1).logits_BC


def norm_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Scales and shifts of its norm layers. (The published TENT takes batch norms only, of which a ViT has none.)"""
    return [value for module in network.modules() if isinstance(module, _NORMS) for value in module.parameters()]


def _split(encoder: nn.Module, crops: Sequence[np.ndarray]) -> list[Tensor]:
    features_ND = encoder(torch.from_numpy(np.concatenate(crops)))
    return list(features_ND.split([len(slide_KHWC) for slide_KHWC in crops]))


def _entropy(logits_BC: Tensor) -> Tensor:
    return -(logits_BC.softmax(1) * logits_BC.log_softmax(1)).sum(1)


def _spread(crops_KHWC: np.ndarray) -> np.ndarray:
    """A few of a slide's crops, spread over all."""
    places = np.unique(np.linspace(0, len(crops_KHWC) - 1, min(_CELLS, len(crops_KHWC))).astype(int))
    return crops_KHWC[places]
