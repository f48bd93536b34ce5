"""Published names to ours: networks written under foreign names come back whole."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from training.nn.resnet import ResNet50Stage3
from training.nn.swin import SwinTinyConvStem
from training.nn.vit import ViT, ViTConfig, chunked, initialise
from training.pathbench.encoders.layouts import plain_names

pytestmark = pytest.mark.training

Tensors = dict[str, Tensor]


def vit(**changes: object) -> Tensors:
    config = {"image_px": 28, "patch_px": 14, "width": 8, "depth": 4, "heads": 2, "mlp": 16, **changes}
    network = ViT(ViTConfig(**config))
    initialise(network, torch.Generator().manual_seed(0))
    return dict(network.state_dict())


def dinov2_teacher(state: Tensors) -> dict[str, Tensors]:
    names = chunked(tuple(state), depth=4, chunks=2)
    teacher = {f"backbone.{names[key]}": value for key, value in state.items()}
    heads = {"dino_head.mlp.0.weight": torch.ones(2, 2), "ibot_head.last_layer.weight_v": torch.ones(2, 2)}
    return {"teacher": {**teacher, "backbone.mask_token": torch.zeros(1, 8), **heads}, "student": {}}


def mstar(state: Tensors) -> Tensors:
    vision = {f"module.vision_encoder.{key}": value for key, value in state.items()}
    return {**vision, "module.proj.weight": torch.ones(2, 2), "module.text_encoder.x": torch.ones(1)}


def _apart(state: Tensors, names: dict[str, str]) -> Tensors:
    """transformers' names; `names` maps parts of ours to theirs."""
    foreign: Tensors = {}
    for key, value in state.items():
        head, _, kind = key.rpartition(".")
        if head.endswith("attn.qkv"):
            layer = f"encoder.layer.{head.split('.')[1]}.attention.attention"
            for part, tensor in zip(("query", "key", "value"), value.chunk(3), strict=True):
                foreign[f"{layer}.{part}.{kind}"] = tensor
            continue
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        foreign[key] = value
    return foreign


def hf_vit(state: Tensors) -> Tensors:
    return _apart(
        state,
        {
            "cls_token": "embeddings.cls_token",
            "pos_embed": "embeddings.position_embeddings",
            "patch_embed.proj": "embeddings.patch_embeddings.projection",
            "blocks.": "encoder.layer.",
            "attn.proj": "attention.output.dense",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
            ".norm1": ".layernorm_before",
            ".norm2": ".layernorm_after",
            "norm.": "layernorm.",
        },
    )


def hf_dinov2(state: Tensors) -> Tensors:
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "blocks.": "encoder.layer.",
        "attn.proj": "attention.output.dense",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
        "norm.": "layernorm.",
    }
    return {**_apart(state, names), "embeddings.mask_token": torch.zeros(1, 8)}


@pytest.mark.parametrize(
    ("layout", "state", "foreign"),
    [
        ("plain", vit(layerscale=1e-5), dict),
        ("dinov2-teacher", vit(layerscale=1e-5), dinov2_teacher),
        ("dinov2-teacher", vit(layerscale=1e-5), dict),
        ("mstar", vit(layerscale=1e-5), mstar),
        ("mstar", vit(layerscale=1e-5), dict),
        ("hf-vit", vit(), hf_vit),
        ("hf-dinov2", vit(layerscale=1.0), hf_dinov2),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", ""),
)
def test_a_transformer_comes_back(layout: str, state: Tensors, foreign: Callable[[Tensors], Tensors]) -> None:
    back = plain_names(foreign(state), layout)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_published_names_are_those_of_transformers() -> None:
    """Spelled out, so that the conversion and its inverse cannot be wrong together."""
    names = hf_vit(vit())
    assert "encoder.layer.0.layernorm_before.weight" in names
    assert "encoder.layer.3.attention.output.dense.bias" in names
    assert "layernorm.bias" in names
    names = hf_dinov2(vit(layerscale=1.0))
    assert {"encoder.layer.1.norm1.weight", "encoder.layer.1.mlp.fc1.weight", "layernorm.weight"} <= names.keys()


def test_a_name_that_no_rule_knows_stays_for_the_strict_load_to_refuse() -> None:
    assert "pooler.dense.weight" in plain_names({"pooler.dense.weight": torch.ones(1)}, "hf-vit")


def test_a_query_without_its_key_and_value_is_left_out() -> None:
    name = "encoder.layer.0.attention.attention.query.weight"
    assert "blocks.0.attn.qkv.weight" not in plain_names({name: torch.ones(8, 8)}, "hf-vit")


def test_ctranspath_s_file_loses_only_what_is_made() -> None:
    state = dict(SwinTinyConvStem().state_dict())
    made = {
        f"layers.{stage}.blocks.{block}.attn_mask": torch.zeros(1)
        for stage, block in ((0, 1), (1, 1), (2, 1), (2, 3), (2, 5))
    } | {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49)}
    back = plain_names({"model": {**state, **made, "head.weight": torch.ones(1)}}, "swin-convstem")
    assert back.keys() == state.keys()
    assert sum(key.endswith("mask_WPP") for key, _ in SwinTinyConvStem().named_buffers()) == 5


def test_a_whole_resnet_is_cut_after_its_third_stage() -> None:
    state = dict(ResNet50Stage3().state_dict())
    whole = {**state, "layer4.0.conv1.weight": torch.ones(1), "fc.weight": torch.ones(1), "fc.bias": torch.ones(1)}
    assert plain_names(whole, "resnet50").keys() == state.keys()
    assert {"layer1.0.downsample.0.weight", "layer3.5.bn3.running_var", "conv1.weight"} <= state.keys()
