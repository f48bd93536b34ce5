"""A value over the iterations: linear warm-up, then half a cosine (DINOv2, arXiv 2304.07193, table 16 and its code)."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Schedule:
    """`warmup` values in equal steps from `start` to `base`, both included; then from `base` towards `final`, which
    is reached at `total` and kept."""

    base: float
    final: float
    total: int
    warmup: int = 0
    start: float = 0.0

    def __call__(self, iteration: int) -> float:
        if iteration < self.warmup:
            return self.start + (self.base - self.start) * iteration / max(self.warmup - 1, 1)
        if iteration >= self.total:
            return self.final
        done = (iteration - self.warmup) / (self.total - self.warmup)
        return self.final + 0.5 * (self.base - self.final) * (1 + math.cos(math.pi * done))
