"""The three runs of Smart-CCS become three engines through the gates; each needs those that it was trained on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from exporters import gates, shapes
from exporters.build import build
from exporters.card import check_card
from exporters.errors import ExportError, GateFailed
from exporters.gates import onnx_runtime
from exporters.imitate import cpu_arithmetic
from exporters.kinds import kind_of
from exporters.onnx_graph import export
from exporters.openvino_target import open_engine
from exporters.rebuild import rebuild
from exporters.tensorrt import in_precision
from exporters.tensorrt_gate import g2_tensorrt
from gateway.domain.model import CropRule, DetectorRule
from gateway.inference import ModelRepository
from gateway.slides.cell_crops import CellCrops
from gateway.slides.site_state import Source
from tests.exporters import smears
from tests.exporters.networks import torch_engine
from tests.support.screening_models import write_screening
from training.graphs import Arrays, Graph, declare
from training.runs import Run
from training.smartccs.heads import HeadKind

pytestmark = [pytest.mark.training, pytest.mark.timeout(600)]

FOLDERS = ("smartccs_detect", "smartccs_embed", "smartccs_slide")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """By model; the slide head's folder comes first by name, and is built last."""
    folder = tmp_path_factory.mktemp("runs")
    detect, embed = smears.detector_run(folder / "b"), smears.encoder_run(folder / "c")
    return dict(zip(FOLDERS, (detect, embed, smears.slide_run(folder / "a", embed, detect)), strict=True))


@pytest.fixture(scope="module")
def graphs(runs: dict[str, Run]) -> dict[str, Graph]:
    return {model: declare(run) for model, run in runs.items()}


@pytest.fixture(scope="module")
def built(runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> ModelRepository:
    """The runs among the released ones, through all gates, a real Triton's too."""
    repository = tmp_path_factory.mktemp("built") / "repository"
    assert sorted(rebuild(runs[FOLDERS[0]].path.parent, repository)) == sorted(FOLDERS)
    return ModelRepository(repository)


def file_of(built: ModelRepository, folder: str) -> bytes:
    return (built.path / folder / "1" / "model.onnx").read_bytes()


def reference(graph: Graph, inputs: Arrays) -> Arrays:
    return torch_engine(graph)(inputs)


def test_each_is_proven_at_its_profile(built: ModelRepository) -> None:
    figures = {}
    for folder in FOLDERS:
        built.check(folder)
        proven = json.loads((built.path / folder / "gate.json").read_bytes())
        assert proven["state"] == "APPROVED"
        figures[folder] = {entry["gate"]: entry.get("figures") for entry in proven["gates"]}
        assert figures[folder]["G4"]["neighbours"] == 0
        assert figures[folder]["G5"]["bit_identical"]
    assert {"scores at batch 1", "boxes at batch 16"} <= figures["smartccs_detect"]["G1"].keys()
    assert not any("rows_at_the_cut" in found for found in figures["smartccs_detect"]["G1"].values())
    slide = figures["smartccs_slide"]
    for place in ("batch 1, cells 1", "batch 2, cells 256", "batch 8, cells 600"):
        assert {f"logits at {place}", f"cell_logits at {place}"} <= slide["G1"].keys()
    assert slide["G4"]["padding content"] == 0
    assert {"padding length", "order of cells"} <= slide["G4"].keys()


def test_the_gateway_reads_their_cards(built: ModelRepository, runs: dict[str, Run]) -> None:
    detect, embed, slide = (built.card(folder) for folder in FOLDERS)
    assert detect.detector == DetectorRule(overlap_px=16, score_threshold=0.2, nms_iou=0.75)
    crops = CellCrops(smears.CROP_PX)
    assert embed.crop == CropRule(
        side_px=smears.CROP_PX,
        context=crops.context,
        mean=crops.mean,
        deviation=crops.deviation,
        transform_sha256=crops.digest,
    )
    assert slide.screening is not None
    assert slide.screening.transform_sha256 == crops.digest
    assert slide.screening.detector is not None
    assert slide.screening.detector.weights_sha256 == detect.version.weights_sha256
    assert slide.encoder is not None
    assert slide.encoder.weights_sha256 == embed.version.weights_sha256
    assert Source.read(dict(slide.screening.source)).digest == smears.source().digest
    assert (slide.screening.temperature, slide.screening.biases) == (1.25, (0.5, 0.0, 0.0, 0.0, 0.0, 0.0, -0.5))
    assert slide.tiles == (1, 600)
    assert slide.composed
    origin = built.document("smartccs_slide")["digests"]
    assert origin["recipe_sha256"] == runs["smartccs_slide"].manifest["recipe_sha256"]


def test_a_card_has_a_bias_for_each_class(built: ModelRepository) -> None:
    card = dict(built.document("smartccs_slide"))
    check_card(card)
    card["screening"] = card["screening"] | {"biases": card["screening"]["biases"][:6]}
    with pytest.raises(ExportError, match="biases"):
        check_card(card)


def test_the_stand_in_of_other_tests_has_the_same_tensors_and_card(built: ModelRepository, tmp_path: Path) -> None:
    """But for widths and sides."""
    stand_in = ModelRepository(write_screening(tmp_path))
    for folder in FOLDERS:
        contracts = [models.contract(folder) for models in (built, stand_in)]
        tensors = [
            {(spec.name, spec.datatype, len(spec.dims), -1 in spec.dims) for spec in (*each.inputs, *each.outputs)}
            for each in contracts
        ]
        assert tensors[0] == tensors[1]
        documents = [models.document(folder).keys() for models in (built, stand_in)]
        assert documents[0] == documents[1]
    rules = [models.document("smartccs_slide")["screening"].keys() for models in (built, stand_in)]
    assert rules[0] == rules[1]


def test_pixels_meet_a_cast_and_places_are_sampled_by_the_standard_operator(built: ModelRepository) -> None:
    for folder in FOLDERS[:2]:
        nodes = onnx.load_from_string(file_of(built, folder)).graph.node
        assert {node.op_type for node in nodes if "image" in node.input} <= {"Cast", "Shape"}
    detect = onnx.load_from_string(file_of(built, "smartccs_detect")).graph
    kinds = [node.op_type for node in detect.node]
    # Each attention samples each of three maps: one layer of encoder, and one of decoder.
    assert kinds.count("GridSample") == 6
    assert not {"TopK", "NonMaxSuppression"} & set(kinds)


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_detector_and_encoder_answer_as_their_networks_do(
    built: ModelRepository, graphs: dict[str, Graph], batch: int
) -> None:
    for folder in FOLDERS[:2]:
        inputs = shapes.inputs_of(graphs[folder], {"batch": batch})
        found, due = onnx_runtime(file_of(built, folder))(inputs), reference(graphs[folder], inputs)
        for name, array in due.items():
            assert array.std() > 1e-3
            np.testing.assert_allclose(found[name], array, atol=1e-5)


@pytest.mark.parametrize("head", ["mean", "max", "abmil"])
def test_every_head_answers_as_its_network_does(runs: dict[str, Run], tmp_path: Path, head: HeadKind) -> None:
    """Padded bags too, of one cell and of the most."""
    graph = declare(smears.slide_run(tmp_path / "run", runs["smartccs_embed"], runs["smartccs_detect"], head))
    data = export(graph, {})
    used = {node.op_type for node in onnx.load_from_string(data).graph.node}
    assert used <= kind_of(graph).operators
    engine = onnx_runtime(data)
    for batch, cells in ((1, 1), (3, 50), (2, 600)):
        inputs = shapes.inputs_of(graph, {"batch": batch, "cells": cells})
        inputs["mask"][-1, (cells + 1) // 2 :] = False
        found, due = engine(inputs), reference(graph, inputs)
        assert list(due) == ["logits", "cell_logits", *(["attention"] if head == "abmil" else [])]
        for name, array in due.items():
            np.testing.assert_allclose(found[name], array, atol=1e-5, err_msg=f"{name} at {batch}, {cells}")
    gates.g4_invariance(engine, graph, kind_of(graph))


class Unmasked(nn.Module):
    """A head that takes padding for cells."""

    def __init__(self, engine: nn.Module) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, features: Tensor, mask: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
        given: tuple[Tensor, ...] = self.engine(features, torch.ones_like(mask), gamma, beta)
        return given


def test_a_head_that_takes_padding_for_cells_fails_the_gate(graphs: dict[str, Graph]) -> None:
    careless = replace(graphs["smartccs_slide"], network=Unmasked(graphs["smartccs_slide"].network))
    with pytest.raises(GateFailed, match="logits depends on what the padding holds"):
        gates.g4_invariance(torch_engine(careless), careless, kind_of(careless))


def test_queries_in_an_order_of_their_own_are_compared_one_by_one(
    built: ModelRepository, graphs: dict[str, Graph]
) -> None:
    """No answer may be excused as one of nearly equal score that changed its place."""
    graph, engine = graphs["smartccs_detect"], onnx_runtime(file_of(built, "smartccs_detect"))

    def exchanged(inputs: Arrays) -> Arrays:
        answers = engine(inputs)
        last = answers["scores"].max(2).argmin(1)
        boxes = answers["boxes"].copy()
        boxes[np.arange(len(boxes)), last] += 0.01
        return answers | {"boxes": boxes}

    with pytest.raises(GateFailed, match="boxes differs from the training network"):
        gates.g1_parity(exchanged, graph, kind_of(graph))


@pytest.mark.parametrize("folder", FOLDERS)
def test_openvino_answers_as_the_network_does(built: ModelRepository, graphs: dict[str, Graph], folder: str) -> None:
    graph = graphs[folder]
    engine = open_engine(built.path / folder / "1" / "model.onnx", "f32")
    gates.g1_parity(engine, graph, kind_of(graph))
    assert gates.g4_invariance(engine, graph, kind_of(graph))["twice"] == 0


@pytest.mark.parametrize("folder", FOLDERS)
def test_tensorrt_parses_and_builds_each_in_fp16(
    built: ModelRepository, graphs: dict[str, Graph], folder: str, tmp_path: Path
) -> None:
    graph, fp32 = graphs[folder], file_of(built, folder)
    typed, _ = in_precision(graph, fp32, "fp16")
    figures = cpu_arithmetic(graph, fp32, typed, "fp16")
    assert figures.keys() == {spec.name for spec in graph.outputs}
    outputs = onnx.load_from_string(typed).graph.output
    assert {value.type.tensor_type.elem_type for value in outputs} == {onnx.TensorProto.FLOAT}
    assert g2_tensorrt(typed, shapes.profile(graph), tmp_path).figures["network_layers"] > 0


def test_a_slide_head_is_built_on_nothing_but_its_own_models(
    built: ModelRepository, runs: dict[str, Run], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="smartccs_slide needs smartccs_embed in the repository first"):
        build(runs["smartccs_slide"].path, tmp_path / "empty")
    strange = smears.encoder_run(tmp_path / "strange", seed=99)
    of_another = smears.slide_run(tmp_path / "of-another", strange, runs["smartccs_detect"])
    with pytest.raises(ExportError, match="was trained on other weights than those of the smartccs_embed"):
        build(of_another.path, built.path)
    detector = smears.detector_run(tmp_path / "detector", seed=99)
    of_another = smears.slide_run(tmp_path / "of-another-detector", runs["smartccs_embed"], detector)
    with pytest.raises(ExportError, match="was trained on other weights than those of the smartccs_detect"):
        build(of_another.path, built.path)
    other = CellCrops(smears.CROP_PX, context=0.2).digest
    cropped = smears.slide_run(
        tmp_path / "cropped", runs["smartccs_embed"], runs["smartccs_detect"], transform_sha256=other
    )
    with pytest.raises(ExportError, match="on crops of another transform than smartccs_embed names"):
        build(cropped.path, built.path)
