"""One run of PathSegmentor becomes three engines and their ensemble, through the gates, and says what it must."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from exporters import gates, shapes
from exporters.agreement import g3_agreement
from exporters.errors import ExportError, GateFailed
from exporters.gates import onnx_runtime
from exporters.imitate import cpu_arithmetic
from exporters.kinds import kind_of
from exporters.openvino_target import open_engine
from exporters.rebuild import rebuild
from exporters.tensorrt import in_precision
from exporters.tensorrt_gate import g2_tensorrt
from exporters.tiles import LABELLED
from gateway.domain.model import PresenceRule
from gateway.domain.prompts import all_triples, token_ids, words
from gateway.inference import ModelRepository, TritonEngine
from gateway.operations.errors import ModelRefused
from gateway.operations.settings import Settings
from tests.exporters.data import write_data
from tests.exporters.networks import torch_engine
from tests.exporters.pathsegs import PROMPTS, TILE_PX, untrained_run
from tests.support.pathseg import write_pathseg
from training.errors import RecipeInvalid, RunInvalid
from training.files import sha256_bytes, sha256_file
from training.graphs import Arrays, Graph, declare, graphs_of
from training.runs import Run

pytestmark = [pytest.mark.training, pytest.mark.timeout(600)]

FOLDERS = ("pathseg", "pathseg_image", "pathseg_prompt", "pathseg_text")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return untrained_run(tmp_path_factory.mktemp("runs") / "pathsegmentor")


@pytest.fixture(scope="module")
def graphs(run: Run) -> dict[str, Graph]:
    return {graph.model: graph for graph in graphs_of(run)}


@pytest.fixture(scope="module")
def built(run: Run, tmp_path_factory: pytest.TempPathFactory) -> ModelRepository:
    """The run among the released ones, through all gates, a real Triton's too."""
    repository = tmp_path_factory.mktemp("built") / "repository"
    assert sorted(rebuild(run.path.parent, repository)) == sorted(FOLDERS)
    return ModelRepository(repository)


def engine_of(built: ModelRepository, folder: str) -> gates.Engine:
    return onnx_runtime((built.path / folder / "1" / "model.onnx").read_bytes())


def test_one_run_gives_all_its_folders_proven(built: ModelRepository, graphs: dict[str, Graph]) -> None:
    assert built.folders == FOLDERS
    for folder in FOLDERS:
        built.check(folder)
    assert built.contract("pathseg").steps == ("pathseg_image", "pathseg_prompt")
    proven = json.loads((built.path / "pathseg_prompt" / "gate.json").read_bytes())
    figures = {entry["gate"]: entry.get("figures") for entry in proven["gates"]}
    for size in ("batch 16", "prompts 32", "tokens 16", "batch 1, prompts 1, tokens 2"):
        assert any(size in place for place in figures["G1"]), size
    assert figures["G4"]["prompts neighbours"] == figures["G4"]["neighbours"] == 0
    assert figures["G4"]["padding content"] == 0
    assert figures["G5"]["bit_identical"]
    assert set(graphs) == {"pathseg_text", "pathseg_image", "pathseg_prompt"}


def test_the_cards_say_what_the_run_measured(run: Run, built: ModelRepository) -> None:
    card, masks = built.card("pathseg"), built.card("pathseg_prompt")
    assert (card.mpp, card.tile_px) == (0.25, TILE_PX)
    assert card.mpp_by_level == {"tissue": 1.0, "cell": 0.25, "nuclei": 0.25}
    assert card.presence_by_level == {
        "tissue": PresenceRule(threshold=0.8, temperature=2.0),
        "cell": PresenceRule(threshold=0.5, temperature=1.5),
        "nuclei": PresenceRule(threshold=0.4, temperature=1.5),
    }
    assert card.prompts is not None
    assert card.prompts == masks.prompts
    assert card.prompts.table_sha256 == sha256_file(built.path / "pathseg_prompt" / "prompts.csv")
    assert (built.path / "pathseg_prompt" / "prompts.csv").read_text() == PROMPTS
    found = {entry.text: (entry.supported, entry.dice, entry.train_images) for entry in card.prompts.entries}
    assert found == {
        "nuclei-level epithelial in colon pathology": (True, 0.71, 20),
        "nuclei-level spindle in colon pathology": (False, 0.31, 20),
        "tissue-level glomerulus in kidney pathology": (False, None, 8),
    }
    text = built.card("pathseg_text")
    assert card.text_encoder is not None
    assert card.text_encoder.weights_sha256 == text.version.weights_sha256
    assert text.vocabulary_size == len(words())
    assert text.tokenizer_sha256 == card.tokenizer_sha256 == sha256_bytes("\n".join(words()).encode())
    assert [figure["interval"] for figure in built.document("pathseg")["metrics"]] == [[0.4, 0.6]]
    documents = {folder: built.document(folder) for folder in FOLDERS}
    assert documents["pathseg_text"]["text_pool"] == "mean"
    assert documents["pathseg_image"]["normalisation"]["mean"] == [123.675, 116.28, 103.53]
    assert {document["research_use"] for document in documents.values()} == {"research use, not a medical device"}
    assert {tuple(document["limits"]) for document in documents.values()} == {("Nobody trained it.",)}


def test_golden_inputs_do_not_hang_on_the_machine(run: Run) -> None:
    """Its kernels sum in another order, which is as if all weights were a little others."""
    for first, second in zip(graphs_of(run), graphs_of(run), strict=True):
        with torch.no_grad():
            for weight in second.network.parameters():
                weight.mul_(1 + 1e-6)
        held, asked = (shapes.inputs_of(graph, shapes.golden(graph)) for graph in (first, second))
        for name, array in held.items():
            np.testing.assert_array_equal(asked[name], array, err_msg=f"{name} of {first.model}")


def test_an_exchanged_table_of_prompts_is_refused(built: ModelRepository, tmp_path: Path) -> None:
    other = shutil.copytree(built.path, tmp_path / "repository")
    (other / "pathseg_prompt" / "prompts.csv").write_text(PROMPTS.replace("false", "true"))
    for folder in ("pathseg_prompt", "pathseg"):
        with pytest.raises(ModelRefused, match=r"its prompts.csv is not the one that its provenance.json names"):
            ModelRepository(other).check(folder)


@pytest.mark.triton
async def test_the_ensemble_answers_as_the_network_does(
    built: ModelRepository, graphs: dict[str, Graph], tmp_path: Path
) -> None:
    """From pixels and words to masks through Triton: text once, images in it; against PyTorch in one piece."""
    network = graphs["pathseg_prompt"].network.network
    images = shapes.inputs_of(graphs["pathseg_image"], {"batch": 3})["image"]
    ids, mask = token_ids(list(all_triples())[:5])
    settings = Settings(state=tmp_path, model_repository=built.path, triton_url=None)
    async with TritonEngine.open(settings, ["pathseg_text", "pathseg"]) as engine:
        text = await engine.infer("pathseg_text", {"token_ids": ids, "token_mask": mask})
        asked = text | {"text_mask": mask}
        repeated = {name: np.ascontiguousarray(np.broadcast_to(rows, (3, *rows.shape))) for name, rows in asked.items()}
        found = await engine.infer("pathseg", {"image": images} | repeated)
        first = {name: np.ascontiguousarray(rows[:, :1]) for name, rows in repeated.items()}
        alone = await engine.infer("pathseg", {"image": images} | first)
    with torch.inference_mode():
        due = network.decode(
            *network.image_encoder(torch.from_numpy(images).float().permute(0, 3, 1, 2)),
            *(tensor[None].expand(3, *tensor.shape) for tensor in _text(network, ids, mask)),
        )
    np.testing.assert_allclose(found["mask_logits"], due.mask_logits_BPSS.numpy(), atol=1e-3)
    np.testing.assert_allclose(found["presence_logit"], due.presence_logit_BP.numpy(), atol=1e-4)
    np.testing.assert_allclose(found["match_similarity"], due.match_similarity_BP.numpy(), atol=1e-4)
    np.testing.assert_array_equal(found["mask_logits"][:, :1], alone["mask_logits"])


def _text(network: nn.Module, ids: np.ndarray, mask: np.ndarray) -> tuple[torch.Tensor, ...]:
    tokens_PLD, global_PD = network.text_encoder(torch.from_numpy(ids), torch.from_numpy(mask))
    return tokens_PLD, global_PD, torch.from_numpy(mask)


def test_the_stand_in_of_other_tests_has_the_same_tensors_and_card(built: ModelRepository, tmp_path: Path) -> None:
    """But for widths and sizes of maps."""
    stand_in = ModelRepository(write_pathseg(tmp_path))
    for folder in FOLDERS:
        contracts = [models.contract(folder) for models in (built, stand_in)]
        tensors = [
            [(spec.name, spec.datatype, len(spec.dims), -1 in spec.dims) for spec in (*each.inputs, *each.outputs)]
            for each in contracts
        ]
        assert tensors[0] == tensors[1]
        assert contracts[0].max_batch_size == contracts[1].max_batch_size
        assert contracts[0].steps == contracts[1].steps
        documents = [models.document(folder).keys() for models in (built, stand_in)]
        assert documents[0] - documents[1] <= {"normalisation"}
        assert not documents[1] - documents[0]


class Leaking(nn.Module):
    """Each prompt hears what all of them say, as where their words share one attention."""

    def __init__(self, engine: nn.Module) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *maps, tokens, spoken, mask = inputs
        return self.engine(*maps, tokens, spoken + spoken.mean(1, keepdim=True), mask)


def test_prompts_that_know_of_one_another_fail_the_gate(graphs: dict[str, Graph]) -> None:
    graph = graphs["pathseg_prompt"]
    leaking = replace(graph, network=Leaking(graph.network))
    with pytest.raises(GateFailed, match="depends on its neighbours in prompts"):
        gates.g4_invariance(torch_engine(leaking), leaking, kind_of(leaking))
    strange = replace(graph, apart=("tokens",))
    with pytest.raises(ExportError, match="entries along tokens are apart; not every output has it"):
        kind_of(strange)


@pytest.mark.parametrize("folder", FOLDERS[1:])
def test_openvino_answers_as_the_network_does(built: ModelRepository, graphs: dict[str, Graph], folder: str) -> None:
    graph = graphs[folder]
    engine = open_engine(built.path / folder / "1" / "model.onnx", "f32")
    gates.g1_parity(engine, graph, kind_of(graph))
    assert gates.g4_invariance(engine, graph, kind_of(graph))["twice"] == 0


@pytest.mark.parametrize("folder", FOLDERS[1:])
def test_tensorrt_parses_and_builds_each_in_fp16(
    built: ModelRepository, graphs: dict[str, Graph], folder: str, tmp_path: Path
) -> None:
    graph, fp32 = graphs[folder], (built.path / folder / "1" / "model.onnx").read_bytes()
    typed, _ = in_precision(graph, fp32, "fp16")
    figures = cpu_arithmetic(graph, fp32, typed, "fp16")
    assert (figures.get("query_index") is not None) == (folder == "pathseg_prompt")
    assert figures.get("query_index", {"equal_share": 1.0})["equal_share"] >= 0.995
    assert g2_tensorrt(typed, shapes.profile(graph), tmp_path).figures["network_layers"] > 0


def test_an_engine_is_compared_on_tiles_with_the_prompts_of_its_table(
    built: ModelRepository, graphs: dict[str, Graph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATHSERVE_DATA", str(write_data(tmp_path, {LABELLED: 7, "seg_consep": 3}, TILE_PX)))
    graph, engine = graphs["pathseg_prompt"], engine_of(built, "pathseg_prompt")
    onnx = (built.path / "pathseg_prompt" / "1" / "model.onnx").read_bytes()
    figures = g3_agreement(graph, onnx, engine, built.path)
    assert (figures["tiles"], figures["reduced"]) == (10, True)
    assert figures["outputs"]["query_index"]["equal_share"] == 1

    def other_query(inputs: Arrays) -> Arrays:
        answers = engine(inputs)
        return answers | {"query_index": answers["query_index"] + 1}

    with pytest.raises(GateFailed, match=r"100.00% of query_index differ"):
        g3_agreement(graph, onnx, other_query, built.path)


def test_a_text_engine_is_compared_on_every_sentence(built: ModelRepository, graphs: dict[str, Graph]) -> None:
    graph, engine = graphs["pathseg_text"], engine_of(built, "pathseg_text")
    onnx = (built.path / "pathseg_text" / "1" / "model.onnx").read_bytes()
    figures = g3_agreement(graph, onnx, engine, built.path)
    assert not figures["reduced"]
    assert figures["rows"] == len(list(all_triples()))


def test_a_run_that_cannot_be_served_says_why(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunInvalid, match="serves 3 graphs, and one was asked for"):
        declare(run)
    with pytest.raises(RunInvalid, match=r"has no prompts.csv: it was not evaluated"):
        graphs_of(replace(run, path=shutil.copytree(run.path, tmp_path / "run", ignore=lambda *_: {"prompts.csv"})))
    with pytest.raises(RecipeInvalid, match="has no section publish, so it serves nothing"):
        graphs_of(replace(run, recipe={key: part for key, part in run.recipe.items() if key != "publish"}))
