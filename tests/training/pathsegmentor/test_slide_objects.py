"""Objects on slides as they are served: a composed slide is one that the gateway reads; figures over slides."""

import json
from pathlib import Path

import pytest

from gateway.operations.settings import settings
from gateway.slides import Slide
from training.errors import DataMissing, RunInvalid
from training.pathsegmentor.serving_page import slide_objects
from training.pathsegmentor.slide_objects import PROMPTS, compose, drawn_by, explained, over_slides


def slide(loss: float, ratio: float | None, control: float = 1.0) -> dict:
    told = None if ratio is None else {
        "ratio": ratio, "control": {"mean": control, "low": control, "high": control}, "exceeds": ratio > control,
    }  # fmt: skip
    row = {"val_dice": 0.7, "tiles": 4, "area_share": 0.1, "weight_share": 0.2, "importance": told}
    return {
        "loss": loss, "objects": {prompt.text: row for prompt in PROMPTS}, "classes": [0.4, 0.6], "target": "B",
        "right": True,
    }  # fmt: skip


def test_importance_over_slides_is_of_mean_losses_and_of_slides_that_show_the_object():
    slides = [slide(1.0, 2.0), slide(1.0, 2.0), slide(0.01, 5.0, control=3.0), slide(9.0, None)]
    row = over_slides(slides)[PROMPTS[0].text]
    assert row["slides"] == row["exceeds"] == 3
    assert row["imp"][0] == pytest.approx(4.05 / 2.01, abs=1e-4)
    assert row["control"][0] == pytest.approx(2.03 / 2.01, abs=1e-4)
    assert row["enrichment"]["value"] == 2.0
    assert over_slides(slides[2:])[PROMPTS[0].text] == {"slides": 1}


def test_the_page_tells_of_real_slides_one_by_one():
    composed = {f"composed-{number}": slide(1.0, 2.0 - number % 2) for number in range(3)}
    found = {
        "settings": {"explain.tiles": 8, "explain.repeats": 10},
        "real": {"slides": {"a_slide": slide(0.5, 1.5), "another": slide(0.5, None)}},
        "composed": {"slides": composed, "objects": over_slides([*composed.values()])},
    }
    text = "\n".join(slide_objects(found, {}))
    assert "**Real slides: 2.**" in text
    assert "| a_slide | B (0.60) | nuclei-level nucleus in colon | – | 1.50 | 1.00 (1.00 to 1.00) | 2.00 |" in text
    assert "| another | B (0.60) | nuclei-level nucleus in colon | – | not found | – | 2.00 |" in text
    assert "| nuclei-level nucleus in colon | – | 3 | 1.67 [1.00, 2.00] | 1.00 [1.00, 1.00] |" in text
    assert "by its whole interval, for: none of them. Of few slides" in text
    found["composed"]["objects"]["nuclei-level nucleus in colon pathology"]["excess"] = (-0.2, -0.3, -0.1)
    text = "\n".join(slide_objects(found, {}))
    assert "for: none of them. It lies below it, by its whole interval, for: nuclei-level nucleus in colon. Of" in text


def test_a_report_of_another_model_is_made_anew_and_models_are_not_mixed(tmp_path: Path):
    card = json.loads((settings().model_repository / "pathseg_image" / "card.json").read_bytes())
    served = card["digests"]["weights_sha256"]
    told = {"loss": 1.0, "tiles": 8, "weight_share": 0.5, "repeats": 10, "target": 0, "objects": []}
    said = {"classes": [{"probability": 1.0, "code": {"display": "A"}}], "exploratory": True, "bag": {}}
    report = {"slide_classes": [said | {"explanation": told}]}
    never = Path("/bin/false")
    (tmp_path / "report").mkdir()

    def lying(weights: str) -> dict:
        models = [{"name": "pathseg_image", "weights_sha256": weights}]
        (tmp_path / "report" / "report.json").write_text(json.dumps(report | {"models": models}))
        return explained(never, tmp_path / "a_slide", tmp_path / "report")

    found = lying(served)
    assert drawn_by([found, found]) == served
    with pytest.raises(RunInvalid, match="several models"):
        drawn_by([found, {"weights_sha256": "0" * 64}])
    with pytest.raises(RunInvalid, match="The analysis of a_slide failed"):
        lying("0" * 64)
    assert not (tmp_path / "report").exists()


def test_a_composed_slide_is_read_as_any_other(tmp_path: Path):
    try:
        assert [compose(tmp_path / f"{number}", number) for number in (0, 1)] == [False, True]
    except DataMissing:
        pytest.skip("the data folder has no tiles of colorectal tissue")
    with Slide.open(sorted((tmp_path / "1").glob("*.dcm"))) as opened:
        assert [(level.width_px, round(level.mpp, 3)) for level in opened.levels] == [
            (1344, 0.5),
            (672, 1.0),
            (336, 2.0),
        ]
