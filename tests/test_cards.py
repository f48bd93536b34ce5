"""The cards of the committed models: valid, and without a diagnosis word where there must be none."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest

REPOSITORY = Path(__file__).parents[1] / "model_repository"
SCHEMA = json.loads((REPOSITORY / "card.schema.json").read_text())
CARDS = {path.parent.name: json.loads(path.read_text()) for path in sorted(REPOSITORY.glob("*/card.json"))}


@pytest.mark.parametrize("name", CARDS)
def test_card_is_valid(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(CARDS[name], SCHEMA)
    assert CARDS[name]["research_use"] == "research use, not a medical device"


@pytest.mark.parametrize("word", ["Adenocarcinoma", "cancer-like", "tumour", "Normal mucosa", "benign gland"])
def test_a_diagnosis_word_is_no_exploratory_label(word: str) -> None:
    card = copy.deepcopy(CARDS["tissue_classification"])
    card["labels"][0]["exploratory"]["display"] = word
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(card, SCHEMA)


def test_ensemble_says_what_its_head_says() -> None:
    ensemble, head = CARDS["tissue_classification"], CARDS["tissue_head"]
    for key in ("labels", "intended_use", "operating_points", "mpp", "tile_px"):
        assert ensemble[key] == head[key]


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if "encoder" in card])
def test_heads_belong_to_the_committed_encoder(name: str) -> None:
    encoder = CARDS[name]["encoder"]
    assert CARDS[encoder["model"]]["digests"]["weights_sha256"] == encoder["weights_sha256"]
    for key in ("mpp", "tile_px"):
        assert CARDS[name][key] == CARDS[encoder["model"]][key]


def test_every_operating_point_says_its_band() -> None:
    bands = {name: [point["band"] for point in card["operating_points"]] for name, card in CARDS.items()}
    assert {name for name, found in bands.items() if found} == {name for name, card in CARDS.items() if card["labels"]}
    assert {band for found in bands.values() for band in found} == {0.02}


@pytest.mark.parametrize("field", ["target", "precision"])
def test_a_card_that_does_not_say_what_the_engine_runs_on_is_none(field: str) -> None:
    card = copy.deepcopy(CARDS["tile_encoder"])
    del card[field]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(card, SCHEMA)


def test_only_a_lower_precision_may_have_a_wide_golden_tolerance() -> None:
    card = copy.deepcopy(CARDS["tile_encoder"]) | {"golden_tolerance": 0.5}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(card, SCHEMA)
    jsonschema.validate(card | {"precision": "bf16", "target": "cpu"}, SCHEMA)


def test_stain_reference_is_two_directions() -> None:
    reference = {"haematoxylin": [0.65, 0.7, 0.29], "eosin": [0.22, 0.8, 0.56], "origin": "Measured for a test."}
    card = copy.deepcopy(CARDS["tile_encoder"]) | {"stain_reference": reference}
    jsonschema.validate(card, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(card | {"stain_reference": reference | {"eosin": [0.22, 0.8]}}, SCHEMA)
