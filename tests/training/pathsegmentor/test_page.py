"""The page of results: what an arm has not given stands as "not run"; figures are those of the files."""

import copy
from dataclasses import asdict

import pytest

from tests.training.pathsegmentor.painted import Painter, item
from training.errors import RunInvalid
from training.files import json_bytes
from training.pathsegmentor import figures, page
from training.pathsegmentor.calibrate import presence, support
from training.pathsegmentor.comparisons import (
    NAIVE,
    NO_LEVEL,
    ONE_QUERY,
    PRETRAINED,
    SHIPPED,
    SPECIALISTS,
    arm_of,
    comparisons,
    write_comparisons,
)
from training.pathsegmentor.evaluate import controls
from training.pathsegmentor.measuring import measure
from training.pathsegmentor.pairs import Table


@pytest.fixture(scope="module")
def shipped() -> dict:
    items = [item(number) for number in range(12)]
    table = Table.of(list(measure(Painter(), items, 7, variants=True)))
    rule = presence(table)
    return {
        "recipe": "pathsegmentor-small",
        "arm": SHIPPED,
        "seed": 1,
        "git_commit": "0123456789abcdef",
        "git_changed_files": 0,
        "training_cpu_s": 600.0,
        "evaluation_cpu_s": 60.0,
        "parameters": 800_000,
        "iterations": 6000,
        "sets": ["consep"],
        "presence": asdict(rule),
        "supports": support(table),
        "figures": figures.summary(table, table, rule),
        "trends": {},
        "pairs": table.record(),
        "controls": controls(Painter(), items[:2]),
        "data": {"split": {"consep": {"test": {"images": 12, "groups": 4}}}, "overlaps": []},
    }


@pytest.fixture
def worse(shipped) -> dict:
    """A specialist that is worse by 0.2 everywhere."""
    run = copy.deepcopy(shipped) | {"recipe": "pathsegmentor-specialist-consep", "arm": SPECIALISTS}
    run["pairs"]["dice"] = [None if dice is None else dice - 0.2 for dice in run["pairs"]["dice"]]
    return run


def test_an_empty_folder_gives_a_page_of_what_was_not_run(tmp_path):
    text = page.page(tmp_path)
    assert "The shipped network: not run." in text
    assert text.count("Not run.") == len(page._ARM_TEXTS) + 1  # the arms, and importance


def test_the_shipped_network_alone(tmp_path, shipped):
    (tmp_path / "pathsegmentor-small.json").write_bytes(json_bytes(shipped))
    write_comparisons(tmp_path)
    text = page.page(tmp_path)
    assert "| shipped | `pathsegmentor-small` | 800,000 | 6,000 | 10 | 1.00 [1.00, 1.00] |" in text
    assert f"| {SPECIALISTS} | not run |" in text
    assert "seed 1, commit 0123456789ab, 600 s of CPU time" in text
    assert "the same bits in 2 of 2" in text
    assert "| nuclei-level epithelial in colon pathology | 1.00 |" in text


def test_an_arm_is_compared_on_the_same_pairs(tmp_path, shipped, worse):
    for run in (shipped, worse):
        (tmp_path / f"{run['recipe']}.json").write_bytes(json_bytes(run))
    write_comparisons(tmp_path)
    text = page.page(tmp_path)
    assert "| consep | -0.20 [-0.20, -0.20] | 4 (0) | 32 |" in text
    found = comparisons([shipped, worse])[SPECIALISTS]
    assert found["by_set"]["consep"]["p_holm"] == found["by_set"]["consep"]["p"]
    assert found["by_object"]["nuclei nucleus"]["pairs"] == 12


def test_without_the_shipped_network_nothing_is_compared(worse):
    assert "by_set" not in comparisons([worse])[SPECIALISTS]


def test_an_arm_is_told_by_its_recipe():
    recipe = {
        "name": "trial",
        "stage": "segmentor",
        "data": {"sets": ["consep"]},
        "network": {"decoder": {}, "text": {"tower": "words"}},
    }
    assert arm_of(recipe) == "trial"
    assert arm_of(recipe | {"publish": {}}) == SHIPPED
    assert arm_of(recipe | {"stage": "specialist"}) == SPECIALISTS
    assert arm_of(recipe | {"data": {"without": ["level"]}}) == NO_LEVEL
    assert arm_of(recipe | {"data": {"naive_absent": True}}) == NAIVE
    assert (
        arm_of(recipe | {"network": {"decoder": {"query_per_prompt": True}, "text": {"tower": "words"}}}) == ONE_QUERY
    )
    assert arm_of(recipe | {"network": {"decoder": {}, "text": {"tower": "minilm"}}}) == PRETRAINED


def test_the_command_writes_the_page_and_refuses_no_folder(tmp_path, capsys):
    out = tmp_path / "page.md"
    (tmp_path / "results").mkdir()
    assert page.main([str(tmp_path / "results"), "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8").startswith("# Segmentation by words")
    assert page.main([str(tmp_path / "absent"), "--out", str(out)]) == 1
    assert "There is no folder absent" in capsys.readouterr().err


def test_a_cut_off_file_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"pairs"')
    with pytest.raises(RunInvalid, match="truncated"):
        page.page(tmp_path)


def test_what_the_presence_rule_hides_is_not_recalled(shipped):
    outside = copy.deepcopy(shipped)
    outside["pairs"]["external"] = [1.0] * len(outside["pairs"]["set"])
    deaf = copy.deepcopy(outside) | {"arm": NAIVE, "presence": {"threshold": 0.99, "temperature": 1.0, "youden": 0.0}}
    found = comparisons([outside, deaf])[NAIVE]["external_recall"]
    assert found["nuclei epithelial"]["value"] == -1.0
