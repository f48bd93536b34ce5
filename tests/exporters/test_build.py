"""The whole way into a repository, through a real Triton; and every way in which nothing is written."""

import asyncio
import json
import resource
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from exporters import __main__ as command
from exporters import build as building
from exporters import ensembles, onnx_graph
from exporters.build import build
from exporters.errors import ExportError, GateFailed
from exporters.model_folder import publish
from exporters.registry import target_named
from exporters.targets import Engine
from exporters.verdict import Gates
from gateway.inference import ModelRepository, TritonEngine
from gateway.operations.errors import PathserveError
from gateway.operations.settings import Settings
from tests.exporters.conftest import REPOSITORY
from training.errors import RunInvalid, WeightsInvalid
from training.files import json_bytes, sha256_file
from training.graphs import Graph
from training.runs import open_run

pytestmark = pytest.mark.training


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def seal(run: Path) -> None:
    """Make the manifest agree with a changed run folder, as a wrong training would leave it."""
    manifest = json.loads((run / "manifest.json").read_bytes())
    for file, key in (
        ("recipe.toml", "recipe_sha256"),
        ("weights.safetensors", "weights_sha256"),
        ("metrics.json", "metrics_sha256"),
    ):
        manifest[key] = sha256_file(run / file)
    (run / "manifest.json").write_bytes(json_bytes(manifest))


@pytest.mark.triton
@pytest.mark.timeout(240)
def test_a_run_becomes_served_models(head_folder: Path, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (head_folder / "gate-failed.json").write_text("{}")
    assert command.main(["build", str(head_folder), "--target", "onnx", "--out", str(repository)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{repository}/tissue_head", f"{repository}/tissue_classification"]
    assert (repository / "card.schema.json").read_bytes() == (REPOSITORY / "card.schema.json").read_bytes()
    models = ModelRepository(repository)
    for name, ran in (("tissue_head", ["G0", "G1", "G4", "G5"]), ("tissue_classification", ["G5"])):
        models.check(name)
        gates = {gate["gate"]: gate for gate in json.loads((repository / name / "gate.json").read_bytes())["gates"]}
        assert [gate for gate, entry in gates.items() if entry["passed"]] == ran
        assert gates["G5"]["figures"]["max_abs_difference"] <= 1e-4
        # Only the figures of gates may differ between machines.
        ours, committed = tree(repository / name), tree(REPOSITORY / name)
        assert ours.keys() == committed.keys()
        same = {path for path in ours if ours[path] == committed[path]}
        assert same >= {"card.json", "config.pbtxt", "1/model.onnx" if name == "tissue_head" else "1/.gitkeep"}
    assert not (head_folder / "gate-failed.json").exists()
    assert sorted(path.name for path in repository.parent.iterdir()) == ["repository", "run"]


def test_a_failed_gate_writes_nothing(
    head_folder: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(repository)
    real = onnx_graph.export  # not the one that gives again what it gave to the same provenance

    def wrong(graph: Graph, stamp: dict[str, str]) -> bytes:
        """The head's graph with its bias in another order, as a wrong label list would leave it."""
        graph.network.linear.bias.data = graph.network.linear.bias.data.flip(0)
        engine = real(graph, stamp)
        graph.network.linear.bias.data = graph.network.linear.bias.data.flip(0)
        return engine

    monkeypatch.setattr(building, "export", wrong)
    assert command.main(["build", str(head_folder), "--target", "onnx", "--out", str(repository)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("G1: logits differs from the training network by ")
    assert error.count("\n") == 1
    assert tree(repository) == before
    failed = json.loads((head_folder / "gate-failed.json").read_bytes())
    assert [(gate["gate"], gate["passed"]) for gate in failed["gates"]] == [("G0", True), ("G1", False)]
    (figure,) = failed["gates"][-1]["figures"].values()
    assert figure["max_abs_difference"] > figure["bound"]
    assert sorted(path.name for path in repository.parent.iterdir()) == ["repository", "run"]


def test_weights_changed_behind_the_manifest_are_refused(head_folder: Path, repository: Path) -> None:
    tensors = load_file(head_folder / "weights.safetensors")
    tensors["linear.bias"] = tensors["linear.bias"].flip(0).contiguous()
    save_file(tensors, head_folder / "weights.safetensors")
    with pytest.raises(RunInvalid, match=r"weights\.safetensors .* differs from its digest"):
        build(head_folder, repository)


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["linear.bias"][2] = float("nan")


def _narrow(tensors: dict[str, torch.Tensor]) -> None:
    tensors["linear.weight"] = tensors["linear.weight"][:5].contiguous()


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [(_nan, "NaN or infinite values in linear.bias"), (_narrow, r"at linear.weight: shape \(5, 1584\)")],
    ids=["nan", "another-architecture"],
)
def test_weights_that_no_training_should_leave_are_refused(
    head_folder: Path, repository: Path, harm: Callable[[dict[str, torch.Tensor]], None], sentence: str
) -> None:
    tensors = load_file(head_folder / "weights.safetensors")
    harm(tensors)
    save_file(tensors, head_folder / "weights.safetensors")
    seal(head_folder)
    with pytest.raises(WeightsInvalid, match=sentence):
        build(head_folder, repository)


def test_head_of_another_embedding_is_refused(head_folder: Path, repository: Path) -> None:
    tensors = load_file(head_folder / "weights.safetensors")
    tensors["linear.weight"] = tensors["linear.weight"][:, :1024].contiguous()
    save_file(tensors, head_folder / "weights.safetensors")
    seal(head_folder)
    with pytest.raises(ExportError, match=r"takes embedding as FP32 \[1024\], and a model before it FP32 \[1584\]"):
        build(head_folder, repository)


def test_truncated_weights_are_refused(head_folder: Path, repository: Path) -> None:
    path = head_folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    seal(head_folder)
    with pytest.raises(WeightsInvalid, match="truncated"):
        build(head_folder, repository)


def test_a_head_needs_the_encoder_that_it_was_trained_on(head_folder: Path, repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="tissue_head needs tile_encoder in the repository first"):
        build(head_folder, tmp_path / "empty")
    assert not (tmp_path / "empty").exists()
    manifest = json.loads((head_folder / "manifest.json").read_bytes())
    manifest["starts_from"]["encoder"]["weights_sha256"] = "f" * 64
    (head_folder / "manifest.json").write_bytes(json_bytes(manifest))
    with pytest.raises(ExportError, match="trained on other weights than those of the tile_encoder"):
        build(head_folder, repository)


def test_a_card_that_does_not_match_the_schema_writes_nothing(head_folder: Path, repository: Path) -> None:
    recipe = head_folder / "recipe.toml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("PAT-MUCUS", "PATTERN-LIKE-MUCUS"), encoding="utf-8")
    seal(head_folder)
    before = tree(repository)
    with pytest.raises(ExportError, match="does not match the schema at labels"):
        build(head_folder, repository)
    assert tree(repository) == before


@pytest.mark.parametrize("system", ["nowhere", "../tissue"])
def test_an_unknown_system_is_refused(head_folder: Path, repository: Path, system: str) -> None:
    recipe = head_folder / "recipe.toml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace('system = "tissue"', f'system = "{system}"'))
    seal(head_folder)
    with pytest.raises(RunInvalid, match="system"):
        build(head_folder, repository)


def test_a_run_that_is_not_there_ends_in_one_sentence(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["build", "/nowhere/run", "--target", "onnx", "--out", str(repository)]) == 1
    assert capsys.readouterr().err == "The run folder run does not exist. Train it first, or name another.\n"


def test_a_reader_finds_one_model_or_the_other_at_every_moment(tmp_path: Path) -> None:
    """A kill stops a build where a reader may look at it: so what a reader never sees, a kill never leaves."""
    staged, target = tmp_path / "staged" / "model", tmp_path / "repository" / "model"
    for folder in (staged, target):
        folder.mkdir(parents=True)
        (folder / "config.pbtxt").write_text(str(folder.parent.name))
    seen: set[str] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                seen.add((target / "config.pbtxt").read_text())
            except FileNotFoundError:
                seen.add("nothing")

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(2000):
        publish(staged, target)
    stop.set()
    reader.join()
    assert seen == {"staged", "repository"}
    assert (target / "config.pbtxt").read_text() == "repository"


def test_a_folder_that_cannot_be_replaced_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ExportError, match="cannot be replaced"):
        publish(tmp_path / "absent", tmp_path / "model")
    assert (tmp_path / "model").is_dir()


@pytest.mark.parametrize("key", ["git_commit", "starts_from"])
def test_a_manifest_that_lacks_a_part_is_refused(head_folder: Path, repository: Path, key: str) -> None:
    manifest = json.loads((head_folder / "manifest.json").read_bytes())
    del manifest[key]
    (head_folder / "manifest.json").write_bytes(json_bytes(manifest))
    with pytest.raises(RunInvalid, match=key):
        build(head_folder, repository)


def test_a_run_without_its_figures_is_refused(head_folder: Path, repository: Path) -> None:
    metrics = json.loads((head_folder / "metrics.json").read_bytes())
    del metrics["operating_point"]
    (head_folder / "metrics.json").write_bytes(json_bytes(metrics))
    seal(head_folder)
    with pytest.raises(RunInvalid, match="operating_point"):
        build(head_folder, repository)


def test_a_manifest_that_is_none_is_refused(head_folder: Path, repository: Path) -> None:
    (head_folder / "manifest.json").write_text("[]")
    with pytest.raises(RunInvalid, match=r"manifest\.json"):
        build(head_folder, repository)


def test_a_page_of_no_models_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "engines.md"
    assert command.main(["page", str(tmp_path / "nowhere"), "--out", str(out)]) == 1
    assert capsys.readouterr().err.startswith("There is no model in nowhere.")
    assert not out.exists()


def test_where_the_run_cannot_be_written_the_figures_go_to_stderr(
    head_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gates = Gates(open_run(head_folder), "tissue_head", "onnx", "fp32")

    def failing() -> dict[str, object]:
        raise GateFailed("G1: it differs by 1.", figures={"difference": 1})

    shutil.rmtree(head_folder)
    with pytest.raises(GateFailed):
        gates.measure("G1", failing)
    assert json.loads(capsys.readouterr().err)["gates"] == [
        {"gate": "G1", "passed": False, "reason": "G1: it differs by 1.", "figures": {"difference": 1}}
    ]


def test_golden_inputs_look_like_tissue_and_follow_the_seed(encoder_graph, head_graph) -> None:
    tiles = encoder_graph.samples({"batch": 3})["image"]
    assert tiles.shape == (3, 224, 224, 3)
    assert np.array_equal(tiles, encoder_graph.samples({"batch": 3})["image"])
    assert len({tile.tobytes() for tile in tiles}) == 3
    red, green, blue = tiles.reshape(-1, 3).mean(0)
    assert green < blue < 230
    assert green < red
    assert (head_graph.samples({"batch": 2})["embedding"] >= 0).all()


@pytest.mark.parametrize(("target", "precision"), [("onnx", "fp16"), ("onnx", "int8"), ("cpu", "fp8")])
def test_a_precision_that_the_target_has_not_is_refused(
    head_folder: Path, repository: Path, target: str, precision: str
) -> None:
    before = tree(repository)
    with pytest.raises(ExportError, match=f"The target {target} is not built in {precision}; its precisions are fp32"):
        build(head_folder, repository, target, precision)
    assert tree(repository) == before


def test_an_opset_that_runtimes_do_not_take_is_refused(
    head_folder: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = building.export
    monkeypatch.setattr(building, "export", lambda graph, stamp: real(graph, stamp, opset=23))
    before = tree(repository)
    with pytest.raises(GateFailed, match=r"G0: the graph uses opset 23; .* held to 20"):
        build(head_folder, repository)
    assert tree(repository) == before
    failed = json.loads((head_folder / "gate-failed.json").read_bytes())
    assert (failed["schema"], failed["folder"], failed["passed"]) == ("pathserve-gate-2", "tissue_head", False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB, which holds the encoder once and not twice."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here (that needs root)")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_ends_in_one_sentence_and_leaves_nothing(
    head_folder: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = small_disk / "repository"
    shutil.copytree(REPOSITORY / "tile_encoder", repository / "tile_encoder")
    before = tree(small_disk)
    assert command.main(["build", str(head_folder), "--target", "onnx", "--out", str(repository)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "No space left on device" in error
    assert str(small_disk) not in error
    assert tree(small_disk) == before


def test_a_file_that_cannot_grow_ends_in_one_sentence_and_leaves_nothing(
    head_folder: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(repository)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))  # the head's engine has 45,055 bytes
    try:
        assert command.main(["build", str(head_folder), "--target", "onnx", "--out", str(repository)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().err == "The repository cannot be written: File too large.\n"
    assert tree(repository) == before
    assert sorted(path.name for path in repository.parent.iterdir()) == ["repository", "run"]


@pytest.mark.triton
@pytest.mark.timeout(240)
def test_one_corrupt_model_keeps_no_other_from_being_built_and_served(
    head_folder: Path, repository: Path, tmp_path: Path
) -> None:
    """A second encoder is corrupt in every file: the head and its ensemble are built beside it, and served."""
    corrupt = shutil.copytree(repository / "tile_encoder", repository / "tile_encoder-v2")
    for path in corrupt.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert build(head_folder, repository) == ["tissue_head", "tissue_classification"]
    with pytest.raises(PathserveError, match="tile_encoder-v2 is refused"):
        ModelRepository(repository).check("tile_encoder-v2")

    async def serve() -> dict[str, bool]:
        settings = Settings(state=tmp_path / "state", model_repository=repository, triton_url=None)
        async with TritonEngine.open(settings, ["tile_encoder-v2", "tissue_classification"]) as engine:
            return {status.folder: status.ready for status in engine.status()}

    ready = asyncio.run(serve())
    assert ready["tissue_classification"]
    assert not ready["tile_encoder-v2"]


def test_an_ensemble_whose_other_step_is_corrupt_is_left_out_and_said_to_be(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("tissue_head", "tissue_classification"):
        shutil.copytree(REPOSITORY / folder, repository / folder)
    (repository / "tissue_head" / "golden.npz").write_bytes(b"")
    plan = ensembles.Plan("tissue_classification", "Title", ("tile_encoder", "tissue_head"))
    assert not ensembles.bring_steps(plan, tmp_path / "staging", repository)
    assert "No version of tissue_classification is built with the new engine." in capsys.readouterr().err
    with pytest.raises(ExportError, match="tissue_classification needs tissue_head in the repository"):
        ensembles.bring_steps(replace(plan, declared=True), tmp_path / "staging", repository)


def test_a_head_of_no_encoder_is_refused(head_folder: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = building.graphs_of
    monkeypatch.setattr(
        building, "graphs_of", lambda run: tuple(replace(graph, needs={}, ensemble=None) for graph in real(run))
    )
    with pytest.raises(ExportError, match="tissue_head says of 0 models that it was trained on them, not of one"):
        build(head_folder, repository)


def test_a_failed_g3_names_every_figure(
    head_folder: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine whose logits stand in another order is refused by what it answers, and nothing is written."""
    monkeypatch.setenv("PATHSERVE_DATA", str(tmp_path))
    cpu = target_named("cpu")

    def swapped(folder: Path) -> Engine:
        engine = cpu.open(folder)
        return lambda inputs: {"logits": np.roll(engine(inputs)["logits"], 1, axis=1)}

    monkeypatch.setattr(building, "target_named", lambda name: replace(cpu, open=swapped))
    before = tree(repository)
    with pytest.raises(GateFailed, match=r"^G3: "):
        build(head_folder, repository, "cpu")
    assert tree(repository) == before
    failed = json.loads((head_folder / "gate-failed.json").read_bytes())
    assert (failed["target"], failed["precision"], failed["folder"]) == ("cpu", "fp32", "tissue_head")
    assert [gate["gate"] for gate in failed["gates"]] == ["G0", "G1", "G4", "G3"]
    assert failed["gates"][-1]["figures"]["labels"]["tissue_head"]["points"]["answer"]["flips"] > 0
