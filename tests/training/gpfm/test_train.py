"""Experts, then a student that learns from them: whole run folders, on the way and resumed."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from training.errors import RunInvalid, WeightsInvalid
from training.gpfm import train
from training.graphs import declare
from training.nn.checkpoints import read_weights
from training.runs import Run

pytestmark = pytest.mark.training


def test_an_expert_tells_what_it_has_seen(experts: dict[str, Run]) -> None:
    for run in experts.values():
        assert run.manifest["data"]
        assert run.manifest["seen"]["groups"].keys() == {"he_crc9"}
        assert len(run.manifest["seen"]["hashes"]) < 35  # the train part, not the set
    for name in ("tissue", "text"):
        assert experts[name].metrics["validation"]["crc9"]["chance"] == pytest.approx(1 / 7, abs=1e-4)


def test_an_expert_in_two_sittings_has_the_same_weights(
    gpfm_folder: Path, experts: dict[str, Run], tmp_path: Path
) -> None:
    recipe = gpfm_folder / "recipes" / "text.toml"
    assert train.train(recipe, tmp_path / "run", stop_after=3) is None
    run = train.train(recipe, tmp_path / "run", resume=True)
    assert run is not None
    assert run.weights_sha256 == experts["text"].weights_sha256


def test_a_student_names_its_experts_and_agrees_with_none_by_chance(student: Run, experts: dict[str, Run]) -> None:
    parents = student.manifest["starts_from"]
    assert {role: entry["recipe"] for role, entry in parents.items()} == {
        "expert_tissue": "tissue", "expert_ssl": "plain", "expert_text": "text",
    }  # fmt: skip
    assert [entry["sha256"] for entry in student.metrics["experts"]] == [
        experts[name].weights_sha256 for name in ("tissue", "plain", "text")
    ]
    assert {entry["licences"][0] for entry in student.metrics["experts"]} == {"CC0"}
    losses = student.metrics["training"]["losses"]
    assert {"cls_tissue", "patch_tissue", "cls_ssl", "patch_ssl", "cls_text"} <= losses.keys()
    assert "patch_text" not in losses
    found = student.metrics["agreement"]["experts"]
    assert found["tissue"].keys() == {"cls", "patch"}
    assert found["text"].keys() == {"cls"}
    assert {"cosine", "start", "shuffled", "centred", "centred_shuffled", "void"} <= found["text"]["cls"].keys()


def test_a_student_resumes_and_refuses_another_expert(
    gpfm_folder: Path, experts: dict[str, Run], student: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = gpfm_folder / "recipes" / "student.toml"
    assert train.train(recipe, tmp_path / "run", stop_after=2) is None
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    run = train.train(recipe, tmp_path / "run", resume=True)
    assert run is not None
    assert run.weights_sha256 == student.weights_sha256

    runs = tmp_path / "runs"
    runs.mkdir()
    for name in ("tissue", "plain"):
        (runs / name).symlink_to(gpfm_folder / "runs" / name)
    monkeypatch.setenv("PATHSERVE_RUNS", str(runs))
    assert train.train(gpfm_folder / "recipes" / "text.toml", changes=("seed=4",)) is not None
    with pytest.raises(RunInvalid, match="expert text is not the one that this run began with"):
        train.train(recipe, tmp_path / "other", resume=True)


def test_a_student_starts_from_an_expert_of_its_shape(
    gpfm_folder: Path, experts: dict[str, Run], tmp_path: Path
) -> None:
    changes = (
        "name=second",
        "start=tissue",
        'network={arch="vit", image_px=32, patch_px=16, width=12, depth=1, heads=2, mlp=16}',
        "iterations=1",
        "teacher.momentum=[1.0, 1.0]",
    )
    run = train.train(gpfm_folder / "recipes" / "student.toml", tmp_path / "run", changes=changes)
    assert run is not None
    assert run.manifest["starts_from"]["student"]["weights_sha256"] == experts["tissue"].weights_sha256
    first, second = read_weights(experts["tissue"].weights_path), read_weights(run.weights_path)
    assert all(torch.equal(first[name], second[name]) for name in first)  # the teacher did not follow
    with pytest.raises(WeightsInvalid, match="differ from the network at"):
        train.train(
            gpfm_folder / "recipes" / "student.toml", tmp_path / "wrong", changes=("name=wrong", "start=tissue")
        )


def test_distillation_alone_and_on_unmasked_crops(gpfm_folder: Path, experts: dict[str, Run], tmp_path: Path) -> None:
    """The ablations of the method are changes of the recipe."""
    recipe = gpfm_folder / "recipes" / "student.toml"
    text = recipe.read_text().replace("dino = {prototypes = 16, hidden = 16, bottleneck = 8}\nibot = {}\n", "")
    (tmp_path / "alone.toml").write_text(text)
    alone = train.train(tmp_path / "alone.toml", tmp_path / "alone", changes=("iterations=2",))
    assert alone is not None
    assert {name.split("_")[0] for name in alone.metrics["training"]["losses"]} == {"cls", "patch", "loss"}
    unmasked = train.train(
        recipe, tmp_path / "unmasked", changes=("iterations=2", "kd.student_view=unmasked", "kd.loss=kldiv")
    )
    assert unmasked is not None
    first = next(json.loads(line) for line in (unmasked.path / "log.jsonl").read_text().splitlines())["losses"]
    assert first["cls_text"] != pytest.approx(alone.metrics["training"]["losses"]["cls_text"]["first"])


@pytest.mark.parametrize("name", ["tissue", "plain", "text", "student"])
def test_what_a_run_serves(name: str, student: Run, experts: dict[str, Run]) -> None:
    run = student if name == "student" else experts[name]
    graph = declare(run)
    image_BHWC = torch.from_numpy(graph.samples({"batch": 2})["image"])
    with torch.no_grad():
        embedding_BD = graph.network(image_BHWC)
        dense_BHWC = graph.network.dense(image_BHWC)
    assert embedding_BD.shape == (2, graph.card["embedding_size"])
    assert not torch.equal(embedding_BD[0], embedding_BD[1])
    assert dense_BHWC.shape == ((2, 4, 4, 16) if name == "student" else (2, 2, 2, 12))
    assert [entry["dataset"] for entry in graph.card["data"]] == ["synthetic"]
    if name == "text":
        torch.testing.assert_close(embedding_BD.norm(dim=1), torch.ones(2))


def test_a_cnn_student_is_pooled_at_three_depths(gpfm_folder: Path, tmp_path: Path) -> None:
    text = (gpfm_folder / "recipes" / "plain.toml").read_text().replace("ibot = {}\n", "")
    (tmp_path / "cnn.toml").write_text(text)
    network = 'network={arch="efficientnet-lite0", start="random"}'
    run = train.train(tmp_path / "cnn.toml", tmp_path / "run", changes=("iterations=1", network))
    assert run is not None
    graph = declare(run)
    image_BHWC = torch.from_numpy(graph.samples({"batch": 2})["image"])
    with torch.no_grad():
        assert graph.network(image_BHWC).shape == (2, graph.card["embedding_size"]) == (2, 1584)
        last_BCHW = graph.network.network((image_BHWC.permute(0, 3, 1, 2).float() - 127) / 128)[0]
        assert torch.equal(graph.network.dense(image_BHWC), last_BCHW.permute(0, 2, 3, 1))


def test_the_command_line_ends_in_a_sentence(
    gpfm_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "odd.toml").write_text('stage = "sleep"\n')
    assert train.main([str(tmp_path / "odd.toml")]) == 1
    assert "expert-contrastive" in capsys.readouterr().err
    recipe = str(gpfm_folder / "recipes" / "student.toml")
    absent = 'kd.experts=[{name="a", run="absent", dim=3, cls=1.0}, {name="b", run="gone", dim=3, cls=1.0}]'
    assert train.main([recipe, "--out", str(tmp_path / "run"), "--set", absent]) == 1
    said = capsys.readouterr().err
    assert "2 of 2 experts cannot be opened" in said
    assert "recipe absent" in said
    assert not (tmp_path / "run").exists()
