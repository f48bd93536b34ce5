"""The same recipe and seed, the same bits."""

import torch
from threadpoolctl import threadpool_limits


def repeatable(*, deterministic: bool = True) -> None:
    """One thread for torch, BLAS and OpenMP and, unless told otherwise, no kernel that may answer in two ways."""
    threadpool_limits(1)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(deterministic)
