"""Every kind of model goes through the door: declared, exported, gated; and what is not its kind's is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from exporters import ensembles, gates, golden, shapes
from exporters.config import check_config
from exporters.errors import ExportError, GateFailed
from exporters.kinds import KINDS, kind_of
from exporters.onnx_target import config_of
from exporters.triton_gate import g5_triton
from gateway.inference import ModelRepository, TritonEngine
from gateway.operations.settings import Settings
from tests.exporters import networks
from tests.exporters.networks import EVERY, TILES, exported, fp32, int64, made
from tests.inference.models import write_card
from tests.support.models import seal
from training.files import json_bytes
from training.graphs import Arrays, Dim

pytestmark = pytest.mark.training


@pytest.mark.parametrize("name", EVERY)
def test_a_kind_is_exported_and_passes_its_gates(name: str) -> None:
    graph, engine = made(name), exported(name)
    kind = kind_of(graph)
    checked = gates.g0_export(engine, config_of(graph, "m-v2"), kind)
    assert checked["opset"] == 20
    assert set(checked["operators"]) <= kind.operators
    loaded = gates.onnx_runtime(engine)
    parity = gates.g1_parity(loaded, graph, kind)
    for dim in shapes.dims_of(graph).values():
        for size in (dim.min, dim.max):
            assert any(f"{dim.name} {size}" in place for place in parity), (dim.name, size, list(parity))
    invariance = gates.g4_invariance(loaded, graph, kind)
    assert invariance["twice"] == 0
    assert ("neighbours" in invariance) == (graph.batch is not None)
    assert invariance.get("neighbours", 0) == 0
    assert ("padding content" in invariance) == any(
        "mask" in spec.name and spec.datatype != "FP32" for spec in graph.inputs
    )
    assert ("order of tiles" in invariance) == ("tiles" in graph.unordered)


def test_every_kind_is_tried_here_and_has_a_card_block() -> None:
    assert {made(name).kind for name in EVERY} == set(KINDS)
    for kind in KINDS.values():
        assert kind.card
        assert not kind.operators & {"NonZero", "NonMaxSuppression", "If", "Loop", "Scan", "Unique", "Compress"}


def test_what_the_gate_of_precision_compares_is_declared() -> None:
    def compared(name: str) -> dict[str, str]:
        graph = made(name)
        return {spec.name: kind_of(graph).slot(spec, graph).compared for spec in graph.outputs}

    assert compared("encoder") == {"embedding": "cosine"}
    assert compared("head") == {"logits": "logits"}
    assert compared("bag") == {"logits": "logits", "attention": "cosine"}
    assert compared("detector") == {"boxes": "cosine", "scores": "cosine", "labels": "labels"}


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("head", {"kind": "oracle"}, "kind oracle; known kinds are encoder, head, bag"),
        (
            "head",
            {"kind": "encoder"},
            r"input embedding \(FP32, 2 axes with the batch\), but a model of kind",
        ),
        ("head", {"outputs": (fp32("scores", 3),)}, "declares the output scores"),
        ("head", {"outputs": (int64("logits", 3),)}, r"logits \(INT64, 2 axes"),
        ("head", {"outputs": (fp32("logits", 3),) * 2}, "declares an output twice"),
        ("head", {"inputs": (fp32("embedding", -1),)}, "only outputs may say -1"),
        ("step", {"inputs": (int64("token"), *made("step").inputs[1:])}, r"token \(INT64, 1 axes"),
        ("head", {"batch": replace(networks.BATCH, name="rows")}, "its name is batch"),
        ("detector", {"outputs": (fp32("boxes", 12, 4),)}, "of the kind detector and lacks the output scores"),
        ("mask_decoder", {"inputs": (fp32("mask_features", 16, 8, 8),)}, "lacks the input text_tokens"),
        ("bag", {"unordered": ("rows",)}, "order along rows means nothing; no input has it"),
        ("bag", {"outputs": (fp32("logits", 1, Dim("other", 1, 2, 3)),)}, "size other, which no input has"),
        (
            "bag",
            {"inputs": (fp32("features", 1, replace(TILES, max=9, opt=9), 16), fp32("xy_um", 1, TILES, 2))},
            "twice",
        ),
        ("bag", {"inputs": (fp32("features", 1, Dim("tiles", 0, 1, 2), 16),)}, "1 ≤ min ≤ opt ≤ max, min < max"),
        ("bag", {"inputs": (fp32("features", 1, Dim("tiles", 5, 5, 5), 16),)}, "1 ≤ min ≤ opt ≤ max, min < max"),
        ("bag", {"inputs": (fp32("features", 1, Dim("tiles", 8, 20, 40, 8), 16),)}, "not multiples of 8"),
    ],
)
def test_a_graph_that_is_not_what_its_kind_is_is_refused(name: str, change: dict, sentence: str) -> None:
    with pytest.raises(ExportError, match=sentence):
        kind_of(replace(made(name), **change))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda samples: {"features": samples["features"]},
        lambda samples: samples | {"xy_um": samples["xy_um"].astype(np.float64)},
        lambda samples: samples | {"features": samples["features"][:, 1:]},
    ],
)
def test_samples_must_be_as_declared(wrong: Callable[[dict], dict]) -> None:
    graph = made("bag")
    with pytest.raises(ExportError, match=r"The samples of tiny_bag give .* at tiles 5; it is declared as FP32"):
        shapes.inputs_of(replace(graph, samples=lambda sizes: wrong(graph.samples(sizes))), {"tiles": 5})


def test_a_cache_carries_what_the_whole_text_would_say() -> None:
    """Prefill and three steps against prefill of the longer text."""
    first, more = (gates.onnx_runtime(exported(name)) for name in ("prefill", "step"))
    tokens = np.random.default_rng(5).integers(0, networks.VOCABULARY, (2, 9))
    answer = first({"token_ids": tokens[:, :6], "mask": np.ones((2, 6), np.int64)})
    for place in (6, 7, 8):
        past = {f"past_{name}": answer[f"present_{name}"] for name in ("key", "value")}
        answer = more({"token_ids": tokens[:, place : place + 1], **past})
    whole = first({"token_ids": tokens, "mask": np.ones((2, 9), np.int64)})
    for name in whole:
        np.testing.assert_allclose(answer[name], whole[name], atol=1e-5)


def test_text_is_a_prompt_for_masks() -> None:
    """The three engines of a text-prompted segmentation take one another's outputs by name."""
    image, text, masks = (made(name) for name in ("image_encoder", "text_encoder", "mask_decoder"))
    sizes = {"batch": 2, "tokens": 5}
    tokens = shapes.inputs_of(text, sizes)
    given = gates.onnx_runtime(exported("image_encoder"))(shapes.inputs_of(image, {"batch": 2}))
    given |= gates.onnx_runtime(exported("text_encoder"))(tokens) | {"text_mask": tokens["token_mask"]}
    asked = {spec.name: given[spec.name] for spec in masks.inputs}
    answer = gates.onnx_runtime(exported("mask_decoder"))(asked)
    with torch.inference_mode():
        due = masks.network(*map(torch.from_numpy, asked.values()))[0].numpy()
    np.testing.assert_allclose(answer["mask_logits"], due, atol=1e-5)


def write(repository: Path, name: str) -> None:
    """A sealed model folder, its golden answers at small sizes."""
    graph, folder = made(name), repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(exported(name))
    config = config_of(graph, name)
    check_config(config)
    (folder / "config.pbtxt").write_text(config.text())
    inputs = shapes.inputs_of(graph, shapes.golden(graph))
    (folder / "golden.npz").write_bytes(golden.pack(inputs, gates.onnx_runtime(exported(name))(inputs)))
    detected = {"overlap_px": 8, "score_threshold": 0.2, "nms_iou": 0.75} if name == "detector" else {}
    write_card(folder, kind=graph.kind, data=[], pretraining=[], metrics=[], **detected)
    origin = json.loads((folder / "provenance.json").read_bytes())
    origin |= {"opset": 20, "git_commit": "0" * 40, "starts_from": {}, "tools": {"onnxruntime": "1"}}
    (folder / "provenance.json").write_bytes(json_bytes(origin))


def write_masks(repository: Path) -> None:
    """image and a text's tokens to masks: the features between its two engines never leave Triton."""
    plan = ensembles.Plan("masks", "Masks of a text", ("image_encoder", "mask_decoder"))
    ensembles.make(plan, repository, repository, {}).write(repository)


def test_an_ensemble_carries_every_tensor_by_its_name(tmp_path: Path) -> None:
    """Two outputs of the first engine go into the second, which takes a text from outside; the fewest rows count."""
    for name in ("image_encoder", "mask_decoder"):
        write(tmp_path, name)
    texts, answers = golden.unpack((tmp_path / "mask_decoder" / "golden.npz").read_bytes())
    two = [{name: array[:2] for name, array in arrays.items()} for arrays in (texts, answers)]
    (tmp_path / "mask_decoder" / "golden.npz").write_bytes(golden.pack(*two))
    seal(tmp_path / "mask_decoder")
    write_masks(tmp_path)
    models = ModelRepository(tmp_path)
    assert [spec.name for spec in models.contract("masks").inputs] == ["image", "text_tokens", "text_mask"]
    known = models.golden("masks")
    images, _ = golden.unpack((tmp_path / "image_encoder" / "golden.npz").read_bytes())
    asked = {"image": images["image"][:2], "text_tokens": two[0]["text_tokens"], "text_mask": two[0]["text_mask"]}
    assert same(known.inputs, asked)
    features = gates.onnx_runtime(exported("image_encoder"))({"image": asked["image"]})
    assert same(known.expected, gates.onnx_runtime(exported("mask_decoder"))(two[0] | features))


def same(found: Arrays, due: Arrays) -> bool:
    return found.keys() == due.keys() and all(np.array_equal(found[name], due[name]) for name in due)


@pytest.mark.triton
@pytest.mark.timeout(240)
async def test_bags_steps_and_joined_engines_are_served(tmp_path: Path) -> None:
    """Any number of tiles without a batch axis, a growing cache, and features handed from engine to engine."""
    repository = tmp_path / "repository"
    for name in ("bag", "step", "image_encoder", "mask_decoder"):
        write(repository, name)
    write_masks(repository)
    direct = {name: gates.onnx_runtime(exported(name)) for name in ("bag", "step", "image_encoder", "mask_decoder")}
    settings = Settings(state=tmp_path / "state", model_repository=repository, triton_url=None)
    async with TritonEngine.open(settings, ["bag", "step", "masks"]) as engine:
        assert [model.reason for model in engine.status()] == [None] * 3
        for tiles in (1, 64, 5000):
            bag = shapes.inputs_of(made("bag"), {"tiles": tiles})
            assert same(await engine.infer("bag", bag), direct["bag"](bag)), tiles
        inputs = shapes.inputs_of(made("step"), {"batch": 3, "past": 1})
        for length in (2, 3, 4):
            answer = await engine.infer("step", inputs)
            assert same(answer, direct["step"](inputs))
            assert answer["present_key"].shape == (3, 2, length, 8)
            inputs |= {f"past_{name}": answer[f"present_{name}"] for name in ("key", "value")}
        text = shapes.inputs_of(made("mask_decoder"), {"batch": 2, "tokens": 5})
        image = shapes.inputs_of(made("image_encoder"), {"batch": 2})
        asked = image | {name: text[name] for name in ("text_tokens", "text_mask")}
        due = direct["mask_decoder"](text | direct["image_encoder"](image))
        assert same(await engine.infer("masks", asked), due)


@pytest.mark.triton
@pytest.mark.timeout(240)
def test_no_output_of_another_shape_or_without_a_number_passes_g5(tmp_path: Path) -> None:
    """Every output counts, not only the first."""
    write(tmp_path / "repository", "detector")
    inputs = shapes.inputs_of(made("detector"), shapes.golden(made("detector")))
    due = gates.onnx_runtime(exported("detector"))(inputs)
    spoiled = {
        "scores": np.full_like(due["scores"], np.nan),
        "labels": due["labels"][:, :1],
    }
    for name, array in spoiled.items():
        with pytest.raises(
            GateFailed, match=f"G5: detector answers through Triton with {name} of another shape, or NaN"
        ):
            g5_triton(tmp_path / "repository", {"detector": [(inputs, due), (inputs, due | {name: array})]})
