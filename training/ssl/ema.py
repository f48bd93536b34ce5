"""The teacher follows the student: an exponential moving average of its weights (arXiv 2104.14294, section 3.1)."""

import torch
from torch import nn


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher ← momentum · teacher + (1 - momentum) · student, for parameters; buffers (batch norms) are copied."""
    followers, leaders = list(teacher.parameters()), list(student.parameters())
    torch._foreach_mul_(followers, momentum)
    torch._foreach_add_(followers, leaders, alpha=1 - momentum)
    for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        mine.copy_(theirs)


@torch.no_grad()
def copy(teacher: nn.Module, student: nn.Module) -> None:
    """teacher ← student."""
    teacher.load_state_dict(student.state_dict())
