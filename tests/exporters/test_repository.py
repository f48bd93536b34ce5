"""The committed model repository: sound, traceable, and without a diagnosis where there must be none."""

import json
import re
from typing import Any

import pytest

from exporters.card import check_card
from exporters.page import page
from gateway.inference import ModelRepository
from tests.exporters.conftest import RELEASED, REPOSITORY, ROOT
from training.files import sha256_file

pytestmark = pytest.mark.training

ENSEMBLES = {"pathseg": "pathseg_image and pathseg_prompt", "tissue_classification": "tile_encoder and tissue_head"}
RUNS = {name: name for name in ("slide_abmil", "slide_transmil", "tile_encoder", "tissue_head")}
RUNS |= {f"pathseg_{part}": "pathseg" for part in ("image", "prompt", "text")}
RUNS |= {f"smartccs_{part}": f"smartccs_{part}" for part in ("detect", "embed", "slide")}
"""Each network's released run."""
MODELS = tuple(sorted({**RUNS, **ENSEMBLES}))
DIAGNOSIS = re.compile(r"carcinoma|cancer|tumou?r|malign|benign|normal|neoplas|mucosa|dysplas|diagnos", re.IGNORECASE)


def read(model: str, file: str) -> dict[str, Any]:
    return json.loads((REPOSITORY / model / file).read_bytes())


def test_it_holds_the_models_and_the_gateway_takes_them() -> None:
    models = ModelRepository(REPOSITORY)
    assert models.folders == MODELS
    for model in MODELS:
        models.check(model)
        check_card(read(model, "card.json"))
        assert models.golden(model) is not None


@pytest.mark.parametrize("model", RUNS)
def test_every_digest_leads_back_to_the_run(model: str) -> None:
    run = RELEASED / RUNS[model]
    digests, provenance = read(model, "card.json")["digests"], read(model, "provenance.json")
    assert digests["engine_sha256"] == sha256_file(REPOSITORY / model / "1" / "model.onnx")
    assert digests["weights_sha256"] == sha256_file(run / "weights.safetensors")
    assert digests["recipe_sha256"] == sha256_file(run / "recipe.toml")
    assert digests["manifest_sha256"] == sha256_file(run / "manifest.json")
    assert provenance["golden_sha256"] == sha256_file(REPOSITORY / model / "golden.npz")
    assert provenance["git_commit"] == json.loads((run / "manifest.json").read_bytes())["git_commit"]
    assert {key: provenance[key] for key in digests} == digests
    assert provenance["onnx_sha256"] == digests["engine_sha256"]


@pytest.mark.parametrize("model", RUNS)
def test_every_network_has_passed_its_gates(model: str) -> None:
    gate = read(model, "gate.json")
    assert (gate["state"], gate["passed"], gate["reduced"]) == ("APPROVED", True, False)
    assert gate["engine_sha256"] == sha256_file(REPOSITORY / model / "1" / "model.onnx")
    assert [(entry["gate"], entry["passed"]) for entry in gate["gates"]] == [
        (g, True) for g in ("G0", "G1", "G4", "G5")
    ]


@pytest.mark.parametrize("model", ENSEMBLES)
def test_an_ensemble_holds_what_its_steps_hold_and_has_answered_through_triton(model: str) -> None:
    gate = read(model, "gate.json")
    assert (gate["state"], gate["passed"]) == ("APPROVED", True)
    gates = {entry["gate"]: entry for entry in gate["gates"]}
    assert gates.pop("G5")["passed"] is True
    assert all(entry["passed"] is None and ENSEMBLES[model] in entry["reason"] for entry in gates.values())


@pytest.mark.parametrize("model", MODELS)
def test_every_sidecar_is_sealed(model: str) -> None:
    files = read(model, "provenance.json")["files"]
    table = {"prompts.csv"} if model == "pathseg_prompt" else set()
    assert set(files) == {"card.json", "config.pbtxt", "golden.npz"} | table
    assert files == {name: sha256_file(REPOSITORY / model / name) for name in files}


def test_the_engines_are_the_ones_that_were_released() -> None:
    assert sha256_file(REPOSITORY / "tile_encoder" / "1" / "model.onnx").startswith("1501f9333e3e")
    assert sha256_file(REPOSITORY / "tissue_head" / "1" / "model.onnx").startswith("685a1d29768f")


@pytest.mark.parametrize("model", MODELS)
def test_sidecars_know_no_machine_and_no_clock(model: str) -> None:
    for file in ("card.json", "provenance.json", "gate.json", "config.pbtxt"):
        text = (REPOSITORY / model / file).read_text(encoding="utf-8")
        assert not re.search(rf"{re.escape(str(ROOT))}|/home/|/usr/|\b20\d\d-\d\d-\d\d|hostname", text)


def test_outside_the_intended_use_no_diagnosis_is_named() -> None:
    card = read("tissue_classification", "card.json")
    assert len(card["labels"]) == 7
    for label in card["labels"]:
        assert label["exploratory"]["scheme"] == "99PATHSERVE"
        assert not DIAGNOSIS.search(label["exploratory"]["code"] + label["exploratory"]["display"])
    assert not any(DIAGNOSIS.search(limit) for limit in card["limits"])
    assert len({label["color"] for label in card["labels"]}) == 7
    large_intestine = {"14742008", "32713005", "9040008", "485005", "32622004", "60184004", "71854001", "34402009"}
    assert {organ["code"] for organ in card["intended_use"]["organs"]} == large_intestine


def test_the_diagnosis_filter_catches_what_it_should() -> None:
    assert all(DIAGNOSIS.search(word) for word in ("Adenocarcinoma", "Tumour stroma", "tumor", "Normal colon mucosa"))


def test_only_classes_above_chance_are_supported() -> None:
    recall = json.loads((RELEASED / "tissue_head" / "metrics.json").read_bytes())["recall"]
    labels = read("tissue_head", "card.json")["labels"]
    assert [label["supported"] for label in labels] == [row["low"] > 1 / 7 for row in recall.values()]


def test_the_engines_page_is_made_of_the_repository() -> None:
    assert (ROOT / "docs" / "engines.md").read_text(encoding="utf-8") == page(REPOSITORY)


def test_no_model_has_a_tolerance_that_hides_a_wrong_engine() -> None:
    assert all(read(model, "card.json")["golden_tolerance"] <= 1e-3 for model in MODELS)
