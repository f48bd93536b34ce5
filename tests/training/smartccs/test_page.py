"""The page of results: what was not measured stands as "not run"; figures and verdicts are those of the files."""

import copy
from pathlib import Path
from typing import Any

import pytest

from gateway.domain.bethesda import NAMES
from training.errors import RunInvalid
from training.files import json_bytes
from training.smartccs import page
from training.smartccs.conditions import conditions
from training.smartccs.modes import BOTH, GRADIENT, NONE, OTHER_ORGAN, SHUFFLED_BANK, SITE
from training.smartccs.results import DETECTOR, FEATURES, ORDER, SHIPPED, results

pytestmark = pytest.mark.training
RESULTS = Path(__file__).parents[3] / "docs" / "results" / "smart-ccs"


DIGESTS = {"head": "ab" * 32, "encoder": "ee" * 32, "detector": "dd" * 32}


def figure(value: float, away: float = 0.01) -> dict[str, float]:
    return {"value": value, "low": value - away, "high": value + away}


def row(gain: float) -> dict[str, Any]:
    """A mode's figures, whose AUC is so far above none's."""
    guarded = {"stopped": 2, "withheld": 0, "sensitivity": figure(0.9), "specificity": figure(0.8)}
    return {
        "auc": figure(0.8 + gain),
        "auc_gain": figure(gain),
        "sensitivity": figure(0.9),
        "sensitivity_gain": figure(0.0),
        "specificity": figure(0.7),
        "specificity_gain": figure(-0.2),
        "right_class": 0.5,
        "served": {
            "sensitivity": figure(0.9),
            "specificity": figure(0.7),
            "turned_normal": 2,
            "turned_normal_of_abnormal": 1,
            "guarded": guarded,
            "sensitivity_high_grade": 0.61,
            "specificity_at_95": 0.22,
            "balanced_accuracy": 0.43,
            "calibration_error": 0.14,
            "recall": dict.fromkeys(NAMES, 0.5) | {"AGC": None},
        },
    }


def at(centre: str, **gains: float) -> dict[str, Any]:
    modes = {NONE: 0.0, SITE: 0.05, BOTH: 0.05, GRADIENT: 0.02, SHUFFLED_BANK: 0.0, OTHER_ORGAN: -0.1} | gains
    state = {"verdict": "adapted", "distance_raw": 0.5, "distance_coloured": 0.02, "gate": 0.01}
    return {
        "experiment": "modes",
        "recipe": SHIPPED,
        "digests": DIGESTS,
        "centre": centre,
        "cpu_s": 60.0,
        "bags": 600,
        "abnormal": 150,
        "detected": {"raw": 900, "coloured": 1000},
        "states": [state, state],
        "best": 1,
        "modes": {mode: row(gain) for mode, gain in modes.items()},
    }


def written(folder: Path, *files: dict[str, Any]) -> Path:
    for number, content in enumerate(files):
        (folder / f"{number:02}.json").write_bytes(json_bytes(content))
    return folder


def verdicts(folder: Path) -> dict[str, list[str]]:
    """What stands in the last column, by condition."""
    found: dict[str, list[str]] = {}
    for line in conditions(results(folder)):
        if line.startswith("| E"):
            cells = line.strip("| ").split(" | ")
            found.setdefault(cells[0], []).append(cells[-1])
    return found


def test_an_empty_folder_gives_a_page_of_what_was_not_run(tmp_path: Path) -> None:
    text = page.page(tmp_path)
    assert "0 met, 0 not met, 0 reported, 26 not measured." in text
    assert "no such set at hand" in text
    assert f"python -m training.smartccs.evaluate detector {DETECTOR} --out docs/results/{tmp_path.name}" in text
    assert text.count("| not run |") == 5 * len(FEATURES) * 2  # centre, features, with and without adaptation


def test_modes_are_shown_and_judged(tmp_path: Path) -> None:
    text = page.page(written(tmp_path, *map(at, ORDER)))
    assert "| stain A | ImageNet (served) | site | 0.850 [0.840, 0.860] | 0.900 [0.890, 0.910] |" in text
    assert "| stain A | fresh weights | none | not run |" in text
    assert "- stain B, none: specificity -0.200 [-0.210, -0.190]" in text
    sides = "0.90 [0.89, 0.91] | 0.70 [0.69, 0.71]"
    guarded = "| 2 (1) | 2 | 0.90 [0.89, 0.91] | 0.80 [0.79, 0.81] |"
    assert f"| scanner | A+B without the gate | {sides} {guarded}" in text  # it hurts
    assert "| scanner | site | 0.61 | 0.22 | 0.43 | 0.14 | 0.50 | 0.50 | 0.50 | 0.50 | 0.50 | 0.50 | – |" in text
    found = verdicts(tmp_path)
    assert found["E5"] == ["not measured", "met", "met", "not measured"]
    assert found["E5, control"] == ["met", "met"]


def test_a_loss_a_silent_flip_and_a_useless_control_are_not_met(tmp_path: Path) -> None:
    files = list(map(at, ORDER))
    files[1] = at("stain A", **{SITE: 0.005, SHUFFLED_BANK: 0.03, OTHER_ORGAN: 0.06})
    files[2]["modes"][SITE]["served"]["guarded"]["stopped"] = 1
    found = verdicts(written(tmp_path, *files, gate(block=-0.02)))
    assert found["E5"] == ["**not met**", "**not met**", "**not met**", "not measured"]
    assert found["E5, control"] == ["**not met**", "**not met**"]
    (tmp_path / "03.json").unlink()
    assert verdicts(tmp_path)["E5"][1] == "not measured"  # a shift is missing


def gate(**gains: float) -> dict[str, Any]:
    """What a gate said of the source's blocks, whose sites gain so much; to one of them no site could be fitted."""
    own = {NONE: row(0.0) | {"odds_of_nilm": -6.4}, SITE: row(0.05) | {"odds_of_nilm": -2.0}}
    rows = {name: {"verdict": "adapted", "auc_gain": figure(gain), "own": own} for name, gain in gains.items()}
    third = {"verdict": "like the source", "same_bits": True, "within": 1.0}
    return {
        "experiment": "gate",
        "recipe": SHIPPED,
        "digests": DIGESTS,
        "cpu_s": 1.0,
        "third_source_set": third,
        "one_block": rows | {"bare": {"verdict": "cannot be fitted", "reason": "Too few cells.", "own": None}},
        "shifts": {},
        "strangers": {"noise": {"verdict": "out of scope"}},
    }


def test_a_site_of_the_source_is_judged_by_blocks_that_no_gate_was_chosen_by(tmp_path: Path) -> None:
    assert verdicts(written(tmp_path, gate(one=0.0, two=-0.009)))["E5"][0] == "met"
    assert verdicts(written(tmp_path, gate(one=0.0, two=-0.011)))["E5"][0] == "**not met**"
    assert verdicts(written(tmp_path, gate()))["E5"][0] == "not measured"


def trainings(**digests: str) -> dict[str, Any]:
    """The served head's training, of these digests, and that of a head on fresh weights, of the same detector."""
    run = {"changes": [], "seed": 1, "git_commit": "c" * 40, "git_changed_files": 0, "cpu_s": 60.0, "heads": [1]}
    told = {SHIPPED: run | {"digests": DIGESTS | digests}, FRESH_HEAD: run | {"digests": DIGESTS | {"head": "ff" * 32}}}
    return {"experiment": "runs", "recipe": SHIPPED, "digests": {}, "cpu_s": 0.0, "runs": told}


FRESH_HEAD = "smartccs-slide-fresh-small"


@pytest.mark.parametrize("kind", ["head", "encoder", "detector"])
def test_a_file_of_other_weights_than_the_trainings_is_left_out_and_told(tmp_path: Path, kind: str) -> None:
    fresh = at("stain A") | {"recipe": FRESH_HEAD, "digests": DIGESTS | {"head": "ff" * 32}}
    text = page.page(written(tmp_path, trainings(), at("source"), fresh))
    assert "Left out as stale" not in text
    assert "| stain A | fresh weights | site | 0.850 [" in text
    text = page.page(written(tmp_path, trainings(**{kind: "99" * 32}), at("source"), fresh))
    assert f"- `01.json`: {kind} `{DIGESTS[kind][:12]}`, and that of the trainings above is `999999999999`" in text
    assert "| source | ImageNet (served) | site | not run |" in text
    # A head on another detector than the served one's stands in no table beside it.
    assert ("- `02.json`: detector" in text) == (kind == "detector")


def test_encoders_and_composed_slides_of_other_weights_are_left_out(tmp_path: Path) -> None:
    encoders = {"experiment": "encoders", "recipe": SHIPPED, "digests": {FRESH_HEAD: "00" * 32}, "cpu_s": 1.0}
    composed = {"experiment": "composed", "digests": DIGESTS | {"head": "00" * 32}, "cpu_s": 1.0, "centres": {}}
    found = results(written(tmp_path, trainings(), encoders, composed))
    assert list(found.stale) == ["01.json", "02.json"]
    assert found.cpu_s == 0.0


def study(head: str = DIGESTS["head"]) -> dict[str, Any]:
    """A report of `pathserve study`, as far as the page reads it."""
    weights = {"smartccs_detect": DIGESTS["detector"], "smartccs_embed": DIGESTS["encoder"], "smartccs_slide": head}
    share = {"of": 3, "among": 4} | figure(0.75, 0.2)
    none = {"of": 0, "among": 0, "value": None, "low": None, "high": None}
    sides = {
        "as negative": {"sensitivity": share, "specificity": none},
        "as abnormal": {"sensitivity": none, "specificity": share},
        "called only": {"sensitivity": none, "specificity": none},
    }
    figures = {
        "cases": 8,
        "positives": 4,
        "outcomes": {"abnormal": 3, "negative": 2, "withheld": 3},
        "sides": sides,
        "auc": {"value": 0.6, "low": None, "high": None},
    }
    models = [{"folder": folder, "version": {"weights_sha256": digest}} for folder, digest in weights.items()]
    return {
        "format": "pathserve-study-report-1",
        "study": {"models": models, "abnormal_from": 0.25, "changes": [["adequacy.min_cells", "50"]]},
        "study_sha256": "cc" * 32,
        "centres": {"stain A": figures},
        "pooled": figures,
    }


def test_a_study_of_composed_centres_stands_with_what_was_frozen(tmp_path: Path) -> None:
    text = page.page(written(tmp_path, trainings(), study()))
    assert "`01.json`: frozen digest `cccccccccccc`, abnormal from 0.250" in text
    assert "`adequacy.min_cells=50`" in text
    shares = "0.75 [0.55, 0.95] | 0.75 [0.55, 0.95] | – | – | 0.60 (no interval: too few)"
    assert f"| stain A | 8 | 4 | 3 | {shares} |" in text
    found = results(written(tmp_path, trainings(), study(head="00" * 32)))
    assert list(found.stale) == ["01.json"]
    assert not found.studies


def test_a_head_is_told_by_all_that_its_probabilities_are_worth(tmp_path: Path) -> None:
    told = trainings()
    told["runs"][SHIPPED] |= {
        "control_shuffled_labels": 0.51,
        "served": {"temperature": 1.5, "abnormal_from": 0.2},
        "test": {
            "bags": {"NILM": 3, "HSIL": 2, "AGC": 0},
            **{key: figure(0.7) for key in ("auc", "sensitivity", "specificity")},
            "specificity_at_95": 0.3,
            "sensitivity_high_grade": 0.5,
            "balanced_accuracy": 0.4,
            "calibration_error": 0.1,
            "recall": dict.fromkeys(NAMES, 0.25) | {"AGC": None},
        },
    }
    text = page.page(written(tmp_path, told))
    assert "on bags of detected cells (3 NILM, 2 HSIL)" in text
    assert "| 0.30 | 0.50 | 0.40 | 0.10 | 1.50; 0.200 | 0.51 |" in text
    assert f"| ImageNet (served) |{' 0.25 |' * 6} – |" in text


def test_prototypes_have_nothing_to_lose_where_they_gain_nothing(tmp_path: Path) -> None:
    assert verdicts(written(tmp_path, at("source", **{GRADIENT: 0.0})))["E5, control"][0] == "not measured"


def test_a_centre_where_nothing_was_found_says_so(tmp_path: Path) -> None:
    failed = {key: at("both")[key] for key in ("experiment", "recipe", "digests", "centre", "cpu_s")}
    text = page.page(written(tmp_path, at("source"), failed | {"failed": "There are no cells."}))
    assert "### both\n\nNothing can be measured: There are no cells." in text


def test_files_of_different_weights_are_not_mixed(tmp_path: Path) -> None:
    other = copy.deepcopy(at("stain A")) | {"digests": DIGESTS | {"detector": "cd" * 32}}
    with pytest.raises(
        RunInvalid, match=r"01\.json and 00\.json are of different weights of smartccs-slide-imagenet-small"
    ):
        page.page(written(tmp_path, at("source"), other))


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunInvalid, match="lacks cpu_s"):
        page.page(written(tmp_path, {"experiment": "modes"}))
    (tmp_path / "00.json").write_text('{"experiment"')
    with pytest.raises(RunInvalid, match="truncated"):
        page.page(tmp_path)


def test_the_command_writes_the_page_and_refuses_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results").mkdir()
    out = tmp_path / "page.md"
    assert page.main([str(tmp_path / "results"), "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8").startswith("# Smart-CCS: figures")
    assert page.main([str(tmp_path / "absent"), "--out", str(out)]) == 1
    assert "There is no folder absent" in capsys.readouterr().err


def test_the_published_page_is_made_of_its_figures() -> None:
    assert RESULTS.with_suffix(".md").read_text(encoding="utf-8") == page.page(RESULTS)
