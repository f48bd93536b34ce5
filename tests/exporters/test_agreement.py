"""G3 passes an engine that agrees with the fp32 ONNX, and stops every wrong one: the negative controls."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from exporters import agreement
from exporters.agreement import (
    THRESHOLDS,
    cosines,
    equal_shares,
    g3_agreement,
    label_agreement,
    label_failures,
)
from exporters.errors import ExportError, GateFailed
from exporters.gates import onnx_runtime
from exporters.openvino_target import open_engine
from exporters.questions import Judge, Point, tiles_for
from exporters.tiles import LABELLED, TileSet, agreement_tiles, whole_slide
from tests.conftest import ROOT, data_path
from training.graphs import Arrays, Dim, Graph, TensorSpec

pytestmark = pytest.mark.training

REPOSITORY = ROOT / "model_repository"


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    """deploy/gpu-check/compare.py, which judges the same on a machine with a GPU."""
    spec = importlib.util.spec_from_file_location("compare", ROOT / "deploy" / "gpu-check" / "compare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "compare" not in sys.modules or sys.modules["compare"].__file__ == module.__file__
    return module


@pytest.fixture(scope="module")
def tiles(cmu_slide: Path) -> TileSet:
    """27 tiles of the slide that is committed: enough for what must fail, too few to approve anything."""
    origin = whole_slide(cmu_slide, 0.5, 224)
    return TileSet((origin,), (np.arange(len(origin))[::2],))


def changed(engine: bytes, change: Callable[[dict[str, onnx.TensorProto]], None]) -> bytes:
    model = onnx.load_from_string(engine)
    held = {weight.name: weight for weight in model.graph.initializer}
    held |= {node.output[0]: node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"}
    change(held)
    return model.SerializeToString()


def test_the_thresholds_are_the_gpu_checks(compare: ModuleType) -> None:
    theirs = compare.THRESHOLDS
    for precision in ("fp16", "bf16"):
        assert THRESHOLDS.min_cosine == theirs[precision]["min_cosine"]
        assert THRESHOLDS.max_flip_share == theirs[precision]["max_flips"]
    assert THRESHOLDS.max_abs_relative == theirs["bf16"]["max_abs_relative"]  # the widest: of any precision
    assert THRESHOLDS.tiles == theirs["tiles"]
    assert THRESHOLDS.band == theirs["operating_point_band"]


@pytest.mark.parametrize("noise", [0.0, 0.003, 0.05, 1.0])
def test_the_figures_and_verdicts_are_the_gpu_checks(compare: ModuleType, noise: float) -> None:
    rng = np.random.default_rng(int(1000 * noise))
    reference = rng.normal(0, 2, (4000, 7)).astype(np.float32)
    found = (reference + rng.normal(0, noise, reference.shape)).astype(np.float32)
    theirs = compare.agreement(torch.from_numpy(found), torch.from_numpy(reference), 0.7)
    ours = label_agreement(found, reference, 0.7, THRESHOLDS.band)
    gap = "max_probability_difference"
    assert ours[gap] == pytest.approx(theirs[gap], abs=1e-12)
    assert {name: value for name, value in ours.items() if name not in (gap, "band")} == {
        name: value for name, value in theirs.items() if name != gap
    }
    assert label_failures(ours) == compare.agreement_failures(theirs, "bf16")
    assert bool(label_failures(ours)) == (noise > 0.01)
    worst = compare.parity(torch.from_numpy(found), torch.from_numpy(reference))["min_cosine"]
    assert cosines(found, reference).min() == pytest.approx(worst, abs=1e-12)


def test_cosines_of_maps_are_taken_over_the_whole_row_and_integers_are_counted() -> None:
    rows = np.arange(1, 25, dtype=np.float32).reshape(2, 3, 4)
    turned = rows.copy()
    turned[1] *= -1
    assert cosines(turned, rows).tolist() == pytest.approx([1.0, -1.0])
    assert equal_shares(np.array([[1, 2, 3, 4], [1, 2, 3, 4]]), np.array([[1, 2, 3, 4], [1, 2, 0, 0]])).tolist() == [
        1,
        0.5,
    ]


def test_openvino_in_f32_agrees(encoder_graph: Graph, encoder_engine: bytes, tiles: TileSet) -> None:
    engine = open_engine(REPOSITORY / "tile_encoder" / "1" / "model.onnx", "f32")
    figures = g3_agreement(encoder_graph, encoder_engine, engine, REPOSITORY, tiles)
    assert figures["reduced"]  # 27 tiles approve nothing
    assert figures["tiles"] == figures["rows"] == 27
    assert figures["sources"] == {"cmu_small_he": 27}
    assert figures["tiles_sha256"] == tiles.digest
    assert figures["outputs"]["embedding"]["min_cosine"] > 0.999999
    judged = figures["labels"]["tissue_head"]["points"]["answer"]
    assert (judged["flips"], judged["crossings"], judged["operating_point"]) == (0, 0, 0.7)
    assert figures["labels"]["tissue_head"]["by_source"]["cmu_small_he"]["tiles"] == 27


@pytest.mark.parametrize(("right", "wrong"), [(127.0, 117.0), (128.0, 118.0)])
def test_a_wrong_normalisation_fails(
    encoder_graph: Graph, encoder_engine: bytes, tiles: TileSet, right: float, wrong: float
) -> None:
    def denormalise(held: dict[str, onnx.TensorProto]) -> None:
        scalar = next(t for t in held.values() if not t.dims and float(numpy_helper.to_array(t)) == right)
        scalar.CopyFrom(numpy_helper.from_array(np.array(wrong, np.float32), scalar.name))

    engine = onnx_runtime(changed(encoder_engine, denormalise))
    with pytest.raises(GateFailed, match="G3: worst cosine of embedding") as caught:
        g3_agreement(encoder_graph, encoder_engine, engine, REPOSITORY, tiles)
    assert caught.value.figures["labels"]["tissue_head"]["points"]["answer"]["flips"] > 0


def test_one_perturbed_layer_fails(encoder_graph: Graph, encoder_engine: bytes, tiles: TileSet) -> None:
    def perturb(held: dict[str, onnx.TensorProto]) -> None:
        weight = held["network.network._blocks.9._depthwise_conv.weight.fp16"]
        values = numpy_helper.to_array(weight)
        noise = np.random.default_rng(0).normal(1, 0.2, values.shape)
        weight.CopyFrom(numpy_helper.from_array((values * noise).astype(values.dtype), weight.name))

    engine = onnx_runtime(changed(encoder_engine, perturb))
    with pytest.raises(GateFailed, match=r"G3: worst cosine of embedding 0\.9\d+ < 0\.9995"):
        g3_agreement(encoder_graph, encoder_engine, engine, REPOSITORY, tiles)


def wrong_bias(answers: Arrays) -> Arrays:
    return {"logits": answers["logits"] + np.array([0.5, -0.5, 0, 0, 0, 0, 0], np.float32)}


def swapped_labels(answers: Arrays) -> Arrays:
    return {"logits": answers["logits"][:, [1, 0, 2, 3, 4, 6, 5]]}


@pytest.mark.parametrize("wrong", [wrong_bias, swapped_labels])
def test_a_wrong_head_fails(
    head_graph: Graph, head_engine: bytes, tiles: TileSet, wrong: Callable[[Arrays], Arrays]
) -> None:
    right = onnx_runtime(head_engine)
    figures = g3_agreement(head_graph, head_engine, right, REPOSITORY, tiles)
    assert figures["labels"]["tissue_head"]["points"]["answer"]["max_probability_difference"] == 0
    with pytest.raises(GateFailed, match="G3: "):
        g3_agreement(head_graph, head_engine, lambda inputs: wrong(right(inputs)), REPOSITORY, tiles)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda x: np.where(np.arange(x.shape[1]) == 7, np.nan, x).astype(np.float32), "G3: NaN or infinite values"),
        (lambda x: x[:, :-1], r"G3: embedding has the shape \[\d+, 1583\], not \[\d+, 1584\]"),
    ],
)
def test_answers_that_are_none_fail(
    encoder_graph: Graph,
    encoder_engine: bytes,
    tiles: TileSet,
    spoil: Callable[[np.ndarray], np.ndarray],
    sentence: str,
) -> None:
    right = onnx_runtime(encoder_engine)

    def engine(inputs: Arrays) -> Arrays:
        return {"embedding": spoil(right(inputs)["embedding"])}

    few = tiles.sample(4, seed=0)
    with pytest.raises(GateFailed, match=sentence) as caught:
        g3_agreement(encoder_graph, encoder_engine, engine, REPOSITORY, few)
    json.dumps(caught.value.figures, allow_nan=False)  # as gate-failed.json holds them


def test_a_reference_that_is_none_passes_nothing(encoder_graph: Graph, encoder_engine: bytes, tiles: TileSet) -> None:
    right = onnx_runtime(encoder_engine)
    broken = {"embedding": np.full((4, 1584), np.nan, np.float32)}
    with pytest.raises(GateFailed, match="G3: NaN or infinite values"):
        g3_agreement(encoder_graph, encoder_engine, right, REPOSITORY, tiles.sample(4, 0), lambda inputs: broken)


def test_no_tile_is_no_agreement(encoder_graph: Graph, encoder_engine: bytes, tiles: TileSet) -> None:
    engine = onnx_runtime(encoder_engine)
    with pytest.raises(GateFailed, match="G3: there is no tile to compare the engines on"):
        g3_agreement(encoder_graph, encoder_engine, engine, REPOSITORY, tiles.sample(0, 0))


def test_a_data_folder_without_a_patch_or_slide_is_as_none(
    encoder_graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "MANIFEST.csv").write_text("path,dataset,sha256,licence,licence_tier,label\n")
    monkeypatch.setenv("PATHSERVE_DATA", str(tmp_path))
    assert tiles_for(encoder_graph) is None


def test_an_output_that_is_missing_is_named(encoder_graph: Graph, encoder_engine: bytes, tiles: TileSet) -> None:
    with pytest.raises(GateFailed, match=r"G3: the engine gives no embedding\."):
        g3_agreement(encoder_graph, encoder_engine, lambda inputs: {}, REPOSITORY, tiles.sample(1, 0))


def test_a_wrong_scale_fails_where_nobody_reads_labels(
    encoder_graph: Graph, encoder_engine: bytes, repository: Path, tiles: TileSet
) -> None:
    """The cosine of a vector and its double is 1."""
    right = onnx_runtime(encoder_engine)
    with pytest.raises(GateFailed, match=r"G3: embedding differs by .*, more than 0\.2 of its largest value"):
        g3_agreement(
            encoder_graph,
            encoder_engine,
            lambda inputs: {"embedding": 2 * right(inputs)["embedding"]},
            repository,
            tiles.sample(2, 0),
        )


def test_one_tile_without_a_probability_is_enough(
    encoder_graph: Graph, encoder_engine: bytes, tiles: TileSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN logits of a sound vector are no flip and no crossing where the reference does not answer."""
    judge = Judge("head", (Point("answer", 1.1, 0.0),), 2, frozenset(), lambda answers: np.array([[np.nan, 0.0]]))
    monkeypatch.setattr(agreement, "judges_of", lambda *_: (judge,))
    engine = onnx_runtime(encoder_engine)
    with pytest.raises(GateFailed, match="G3: head: NaN or infinite logits"):
        g3_agreement(encoder_graph, encoder_engine, engine, REPOSITORY, tiles.sample(1, 0))


@pytest.mark.parametrize("figure", ["flip_share", "answered_flips", "crossings_outside"])
def test_a_figure_that_is_no_number_passes_nothing(figure: str) -> None:
    figures = {"flip_share": 0.0, "answered_flips": 0, "crossings_outside": 0}
    assert label_failures(figures) == []
    assert label_failures(figures | {figure: float("nan")})


def test_one_bad_tile_is_enough(encoder_graph: Graph, encoder_engine: bytes, tiles: TileSet) -> None:
    """The worst tile counts, never the mean."""
    right, asked = onnx_runtime(encoder_engine), tiles.sample(12, seed=0)
    (batch,) = asked.batches()

    def engine(inputs: Arrays) -> Arrays:
        answer = right(inputs)["embedding"].copy()
        bad = (inputs["image"] == batch.images_BHWC[5]).all((1, 2, 3))
        answer[bad] *= np.linspace(0.5, 1.5, 1584, dtype=np.float32)
        return {"embedding": answer}

    with pytest.raises(GateFailed, match="worst cosine"):
        g3_agreement(encoder_graph, encoder_engine, engine, REPOSITORY, asked)


def test_without_data_the_golden_inputs_approve_nothing(
    encoder_graph: Graph, encoder_engine: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATHSERVE_DATA", str(tmp_path))
    figures = g3_agreement(encoder_graph, encoder_engine, onnx_runtime(encoder_engine), REPOSITORY)
    assert figures["reduced"]
    assert figures["tiles"] == 0
    assert figures["sources"] == {"golden": 3}
    with pytest.raises(GateFailed, match="worst cosine"):
        g3_agreement(
            encoder_graph,
            encoder_engine,
            lambda inputs: {"embedding": onnx_runtime(encoder_engine)({"image": 255 - inputs["image"]})["embedding"]},
            REPOSITORY,
        )


def test_an_encoder_without_a_head_is_reduced(
    encoder_graph: Graph, encoder_engine: bytes, repository: Path, tiles: TileSet
) -> None:
    figures = g3_agreement(encoder_graph, encoder_engine, onnx_runtime(encoder_engine), repository, tiles.sample(2, 0))
    assert figures["reduced"]
    assert "labels" not in figures


def test_a_head_that_is_not_whole_cannot_judge(
    encoder_graph: Graph, encoder_engine: bytes, repository: Path, tiles: TileSet
) -> None:
    shutil.copytree(REPOSITORY / "tissue_head", repository / "tissue_head")
    engine = repository / "tissue_head" / "1" / "model.onnx"
    engine.write_bytes(engine.read_bytes()[:-1])
    with pytest.raises(ExportError, match="tissue_head is needed to compare engines, and cannot be used"):
        g3_agreement(encoder_graph, encoder_engine, onnx_runtime(encoder_engine), repository, tiles.sample(2, 0))


def test_a_head_without_its_encoder_cannot_be_asked(
    head_graph: Graph, head_engine: bytes, tmp_path: Path, tiles: TileSet
) -> None:
    with pytest.raises(ExportError, match="needs the fp32 tile_encoder that it was trained on"):
        g3_agreement(head_graph, head_engine, onnx_runtime(head_engine), tmp_path, tiles.sample(2, 0))


def bag_graph(head_graph: Graph) -> tuple[Graph, bytes]:
    """Mean of the vectors, then the head's own classes: a slide's label from the tiles of one source."""
    tiles = Dim("tiles", 1, 8, 16)
    features, logits = TensorSpec("features", "FP32", (1, tiles, 1584)), TensorSpec("logits", "FP32", (1, 7))
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(0, 0.05, (1584, 7)).astype(np.float32), "w")
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    nodes = [
        helper.make_node("ReduceMean", ["features", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["logits"]),
    ]
    rim = [
        helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, [1, "tiles", 1584]),
        helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 7]),
    ]
    graph = helper.make_graph(nodes, "graph", rim[:1], rim[1:], [weight, axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    declared = replace(head_graph, model="bag", kind="bag", inputs=(features,), outputs=(logits,), batch=None)
    return declared, model.SerializeToString()


def test_bags_are_made_of_one_sources_tiles(head_graph: Graph, tiles: TileSet) -> None:
    graph, engine = bag_graph(head_graph)
    right, sizes = onnx_runtime(engine), []

    def watched(inputs: Arrays) -> Arrays:
        sizes.append(inputs["features"].shape)
        return right(inputs)

    figures = g3_agreement(graph, engine, watched, REPOSITORY, tiles)
    assert sorted(sizes) == [(1, 11, 1584), (1, 16, 1584)]
    assert figures["rows"] == 2
    assert figures["tiles"] == 27
    assert figures["labels"]["bag"]["points"]["answer"]["flips"] == 0

    def turned(inputs: Arrays) -> Arrays:
        return {"logits": -right(inputs)["logits"]}

    with pytest.raises(GateFailed, match="worst cosine of logits -1"):
        g3_agreement(graph, engine, turned, REPOSITORY, tiles)


def test_openvino_in_f32_agrees_on_a_sample_of_the_public_data(encoder_graph: Graph, encoder_engine: bytes) -> None:
    data_path("MANIFEST.csv")
    engine = open_engine(REPOSITORY / "tile_encoder" / "1" / "model.onnx", "f32")
    sample = agreement_tiles(0.5, 224).sample(120, seed=5)
    figures = g3_agreement(encoder_graph, encoder_engine, engine, REPOSITORY, sample)
    assert len(figures["sources"]) >= 10
    assert figures["outputs"]["embedding"]["min_cosine"] > 0.999999
    assert figures["labels"]["tissue_head"]["points"]["answer"]["flips"] == 0


def test_labelled_tiles_give_the_change_of_the_labelled_figure(head_graph: Graph, head_engine: bytes) -> None:
    data_path("MANIFEST.csv")
    every = agreement_tiles(0.5, 224)
    place = [origin.name for origin in every.origins].index(LABELLED)
    labelled = TileSet(every.origins[place : place + 1], every.chosen[place : place + 1])
    figures = g3_agreement(head_graph, head_engine, onnx_runtime(head_engine), REPOSITORY, labelled)
    found = figures["labels"]["tissue_head"]["labelled"]
    assert found["tiles"] == 70
    accuracy = found["balanced accuracy"]
    assert accuracy["engine"] == accuracy["reference"]
    assert accuracy["change"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert accuracy["reference"]["value"] > 0.9  # the head was fitted on them
    right = onnx_runtime(head_engine)
    with pytest.raises(GateFailed) as caught:
        g3_agreement(head_graph, head_engine, lambda inputs: swapped_labels(right(inputs)), REPOSITORY, labelled)
    worse = caught.value.figures["labels"]["tissue_head"]["labelled"]["balanced accuracy"]["change"]
    assert worse["high"] < -0.3
