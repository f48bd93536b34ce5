"""How published files name the tensors of networks that are the same: to our names, and back for tests.

Sources: the checkpoints' own key lists as their loaders show them (DINOv2's FSDP chunks, timm, transformers' ViT and
Dinov2, torchvision, CTransPath's timm 0.5).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from training.nn.vit import unchunked

Tensors = dict[str, Tensor]


def plain_names(tensors: Mapping[str, Any], layout: str) -> Tensors:
    """A file's content as tensors under the names of training.nn."""
    return _LAYOUTS[layout](tensors)


def _dinov2_teacher(tensors: Mapping[str, Any]) -> Tensors:
    """DINOv2's training checkpoint: the teacher's backbone, without heads and mask token, its blocks in chunks.

    A file that holds the backbone alone, under plain names, is taken as it is.
    """
    if "teacher" not in tensors:
        return dict(tensors)
    teacher = tensors["teacher"]
    backbone = {key.removeprefix("backbone."): value for key, value in teacher.items() if key.startswith("backbone.")}
    names = unchunked(tuple(backbone))
    return {names[key]: value for key, value in backbone.items() if key != "mask_token"}


def _mstar(tensors: Mapping[str, Any]) -> Tensors:
    """The vision encoder of a training checkpoint; projections and the text branch stay behind."""
    tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    prefix = "vision_encoder."
    if not any(key.startswith(prefix) for key in tensors):
        return dict(tensors)
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


_HF_VIT = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layer\.(\d+)\.output\.dense\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.layer\.(\d+)\.layernorm_before\.(\w+)", r"blocks.\1.norm1.\2"),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.(\w+)", r"blocks.\1.norm2.\2"),
    (r"layernorm\.(\w+)", r"norm.\1"),
)
_HF_DINOV2 = (
    *_HF_VIT[:4],
    (r"encoder\.layer\.(\d+)\.(norm[12])\.(\w+)", r"blocks.\1.\2.\3"),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.mlp\.(fc[12])\.(\w+)", r"blocks.\1.mlp.\2.\3"),
    _HF_VIT[-1],
)
_HF_QUERY = re.compile(r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(\w+)")


def _hugging_face(rules: tuple[tuple[str, str], ...]) -> Callable[[Mapping[str, Any]], Tensors]:
    """transformers' names; queries, keys and values, which lie apart there, are packed."""

    def convert(tensors: Mapping[str, Any]) -> Tensors:
        plain: Tensors = {}
        packed: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key == "embeddings.mask_token":
                continue
            if found := _HF_QUERY.fullmatch(key):
                layer, part, kind = found.groups()
                packed.setdefault(f"blocks.{layer}.attn.qkv.{kind}", {})[part] = value
                continue
            plain[_renamed(key, rules)] = value
        for key, parts in packed.items():
            if parts.keys() == {"query", "key", "value"}:
                plain[key] = torch.cat([parts["query"], parts["key"], parts["value"]])
        return plain

    return convert


def _renamed(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    """The first rule's name; the key itself where none fits, which the strict load then refuses by name."""
    for pattern, replacement in rules:
        if found := re.fullmatch(pattern, key):
            return found.expand(replacement)
    return key


def _swin_convstem(tensors: Mapping[str, Any]) -> Tensors:
    """CTransPath's and CHIEF's file: under `model`; masks and places of windows are made, not read; no classifier."""
    tensors = tensors.get("model", tensors)
    made = ("attn_mask", "relative_position_index")
    return {key: value for key, value in tensors.items() if not key.endswith(made) and not key.startswith("head.")}


def _resnet50(tensors: Mapping[str, Any]) -> Tensors:
    """A whole ResNet-50 up to its third stage."""
    return {key: value for key, value in tensors.items() if not key.startswith(("layer4.", "fc."))}


_LAYOUTS: Mapping[str, Callable[[Mapping[str, Any]], Tensors]] = {
    "plain": dict,
    "dinov2-teacher": _dinov2_teacher,
    "mstar": _mstar,
    "hf-vit": _hugging_face(_HF_VIT),
    "hf-dinov2": _hugging_face(_HF_DINOV2),
    "swin-convstem": _swin_convstem,
    "resnet50": _resnet50,
}
