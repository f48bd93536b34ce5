"""Weights in and out of files: strict, checked, and stored as fp16 where that is the weight's own precision."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from training.errors import WeightsInvalid
from training.files import write_atomic

_COUNTER = "num_batches_tracked"


def round_to_fp16(network: nn.Module, minimum: int = 1024) -> None:
    """Round every weight matrix or kernel of at least `minimum` elements to the nearest fp16 value, in place.

    Done before a network is evaluated, so that the shipped half-size weights are the ones that were measured.
    Vectors (biases, batch norms) keep fp32: they are small, and their rounding would shift whole channels.
    """
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1 and parameter.numel() >= minimum:
                parameter.copy_(parameter.half().float())


def save_weights(path: Path, network: nn.Module) -> None:
    """Write the network's state atomically. A tensor that fp16 represents exactly is stored as fp16."""
    tensors = {}
    for key, value in network.state_dict().items():
        if key.endswith(_COUNTER):
            continue
        value = value.detach().contiguous()
        half = value.half()
        tensors[key] = half if value.numel() >= 1024 and torch.equal(half.float(), value) else value
    write_atomic(path, save(tensors))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file as fp32. Raises WeightsInvalid where it is absent or truncated."""
    try:
        return {key: value.float() for key, value in load_file(path).items()}
    except FileNotFoundError:
        raise WeightsInvalid(
            f"{path.name} is missing in the run folder. Train the run again or copy it whole."
        ) from None
    except (safetensors.SafetensorError, OSError, ValueError):
        raise WeightsInvalid(
            f"{path.name} cannot be read: it is truncated or not a safetensors file. Copy the run folder again."
        ) from None


def load_state(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load `tensors` into `network`, all of them and nothing else.

    Raises WeightsInvalid naming the first tensor (in the network's order) that is missing or has another shape, the
    first one that the network does not know, or the first that holds a NaN or an infinity.
    """
    expected = {key: value for key, value in network.state_dict().items() if not key.endswith(_COUNTER)}
    found = {key: value for key, value in tensors.items() if not key.endswith(_COUNTER)}
    for key, value in expected.items():
        if key not in found:
            raise WeightsInvalid(f"The weights of {source} lack {key}: they belong to another architecture.")
        if found[key].shape != value.shape:
            raise WeightsInvalid(
                f"The weights of {source} differ from the network at {key}: shape {tuple(found[key].shape)} "
                f"in place of {tuple(value.shape)}. They belong to another architecture."
            )
    for key, value in found.items():
        if key not in expected:
            raise WeightsInvalid(f"The weights of {source} hold {key}, which the network does not have.")
        if not bool(torch.isfinite(value).all()):
            raise WeightsInvalid(f"The weights of {source} hold NaN or infinite values in {key}. Train the run again.")
    network.load_state_dict(found, strict=False)
