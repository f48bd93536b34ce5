"""The projection head of DINO, iBOT and expert distillation (arXiv 2304.07193, appendix B; GPFM, arXiv 2407.18449).

An MLP, L2 normalisation, and a bias-free linear layer whose rows are normalised and scaled by a trainable length.
Parameter names are those of the published checkpoints: `mlp.…`, `last_layer.weight_g`, `last_layer.weight_v`.
"""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NormedLinear(nn.Module):
    """(…,D) to (…,K): row k of the weight is g_k · v_k / ‖v_k‖ (arXiv 1602.07868). g starts at 1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outputs, 1))
        self.weight_v = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.kaiming_uniform_(self.weight_v, a=math.sqrt(5))

    def forward(self, x_D: Tensor) -> Tensor:
        weight_KD = self.weight_g * self.weight_v / self.weight_v.norm(dim=1, keepdim=True)
        return F.linear(x_D, weight_KD.to(x_D.dtype))


class ProjHead(nn.Module):
    """(…,inputs) to (…,outputs). One layer is one linear map to the bottleneck; more have `hidden` wide GELU layers."""

    def __init__(
        self, inputs: int, outputs: int, *, layers: int = 3, hidden: int = 2048, bottleneck: int = 256
    ) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (layers - 1), bottleneck]
        linears = [nn.Linear(wide, narrow) for wide, narrow in itertools.pairwise(widths)]
        self.mlp: nn.Module = linears[0]
        if layers > 1:
            self.mlp = nn.Sequential(linears[0], *(part for linear in linears[1:] for part in (nn.GELU(), linear)))
        self.last_layer = NormedLinear(bottleneck, outputs)

    def forward(self, x_D: Tensor) -> Tensor:
        bottleneck_D = self.mlp(x_D)
        least = 1e-6 if bottleneck_D.dtype == torch.float16 else 1e-12
        return self.last_layer(F.normalize(bottleneck_D, dim=-1, eps=least))


def initialise(head: ProjHead, generator: torch.Generator | None = None) -> None:
    """Fresh weights: the MLP normal 0.02 cut at two units with zero biases; v by the framework's default, g at 1."""
    for name, parameter in head.named_parameters():
        if name == "last_layer.weight_g":
            nn.init.ones_(parameter)
        elif name == "last_layer.weight_v":
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)
        elif name.endswith(".bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
