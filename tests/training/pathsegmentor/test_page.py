"""The page of results: what an arm has not given stands as "not run"; figures are those of the files."""

import copy
from dataclasses import asdict
from pathlib import Path

import pytest

from gateway.domain.prompts import Level
from tests.training.pathsegmentor.painted import OBJECTS, Painter, item
from training.errors import RunInvalid
from training.files import json_bytes
from training.pathsegmentor import figures, page
from training.pathsegmentor.calibrate import presence, support
from training.pathsegmentor.comparisons import (
    DESIGN,
    NAIVE,
    NO_LEVEL,
    NO_REGION,
    ONE_QUERY,
    PRETRAINED,
    SPECIALISTS,
    arm_of,
    comparisons,
    write_comparisons,
)
from training.pathsegmentor.conditions import conditions
from training.pathsegmentor.evaluate import controls
from training.pathsegmentor.explain import CONTROL, OBJECT_AWARE, PLAIN
from training.pathsegmentor.markdown import verdict
from training.pathsegmentor.measuring import measure, measure_presence
from training.pathsegmentor.pairs import Table
from training.pathsegmentor.serving_page import SERVED, SLIDE_OBJECTS

RESULTS = Path(__file__).parents[3] / "docs" / "results" / "pathsegmentor"


@pytest.fixture(scope="module")
def served() -> dict:
    items = [item(number) for number in range(12)]
    table = Table.of(list(measure(Painter(), items, 7, variants=True)))
    rules = presence(table)
    windows = Table.of(list(measure_presence(Painter(), items, {(Level.NUCLEI, name) for name in OBJECTS})))
    return {
        "recipe": "pathsegmentor-small",
        "arm": DESIGN,
        "served": True,
        "seed": 1,
        "git_commit": "0123456789abcdef",
        "git_changed_files": 0,
        "weights_sha256": "ab" * 32,
        "training_cpu_s": 600.0,
        "evaluation_cpu_s": 60.0,
        "parameters": 800_000,
        "iterations": 6000,
        "sets": ["consep"],
        "presence": {level: asdict(rule) for level, rule in rules.items()},
        "supports": support(table),
        "figures": figures.summary(table, table, rules),
        "absence_by_level": {"test": figures.by_level(windows, rules)},
        "trends": {},
        "pairs": table.record(),
        "controls": controls(Painter(), items[:2]),
        "data": {"split": {"consep": {"test": {"images": 12, "groups": 4}}}, "overlaps": []},
    }


@pytest.fixture
def worse(served) -> dict:
    """A specialist that is worse by 0.2 everywhere."""
    run = copy.deepcopy(served) | {"recipe": "pathsegmentor-specialist-consep", "arm": SPECIALISTS, "served": False}
    run["pairs"]["dice"] = [None if dice is None else dice - 0.2 for dice in run["pairs"]["dice"]]
    return run


def test_an_empty_folder_gives_a_page_of_what_was_not_run(tmp_path):
    text = page.page(tmp_path)
    assert "The served network: not run." in text
    assert text.count("Not run.") == len(page._ARM_TEXTS) + 3  # importance twice, and the engines
    assert "1 met, 0 not met, 0 reported, 21 not measured." in text


def test_the_served_network_alone(tmp_path, served):
    (tmp_path / "pathsegmentor-small.json").write_bytes(json_bytes(served))
    write_comparisons(tmp_path)
    text = page.page(tmp_path)
    assert (
        "| **published design**, served | `pathsegmentor-small` | 800,000 | 6,000 | 10 | 1.00 [1.00, 1.00] | 1.00 ["
        in text
    )
    assert f"| {SPECIALISTS} | not run |" in text
    assert "seed 1, commit 0123456789ab, 600 s of CPU time" in text
    assert "the same bits in 2 of 2" in text
    assert "| nuclei-level epithelial in colon pathology | 1.00 | 1.00 |" in text
    assert "| nuclei | outlined | 4 | 0.00 [0.00, 0.00] | 0.00 [0.00, 0.00] |" in text
    assert "| S8 | a prompt's mask is the same with and without others | 2 of 2 images | met |" in text
    assert "| Nuclei | better than Otsu's threshold, a patient at a time, in every set | consep +" in text
    assert text.count("chosen on all levels") == 3  # twelve images are too few for a level's own


def test_what_is_lost_and_what_is_always_wrong_is_said_in_words(tmp_path, served):
    run = copy.deepcopy(served)
    lost = run["figures"]["baselines"]["otsu"]["consep"]
    lost |= {"value": -0.2, "low": -0.3, "high": -0.0004, "p": 0.07, "p_holm": 0.0002}
    kinds = copy.deepcopy(run["figures"]["overlap"]["test"]["by_set"]["consep"])
    kinds["dice"] |= {"value": 0.33, "low": 0.26, "high": 0.39}
    kinds["otsu"] |= {"value": 0.48, "low": 0.42, "high": 0.54}
    run["figures"]["overlap"]["external"]["by_set"]["monusac"] = kinds
    run["absence_by_level"]["test"]["nuclei"]["false_mask"]["outlined"]["served"] |= {"value": 1.0}
    run["trends"] = {"nuclei": {"pairs": 36, "outlines": 29, "groups": 4, "by": {}}}
    (tmp_path / "pathsegmentor-small.json").write_bytes(json_bytes(run))
    write_comparisons(tmp_path)
    text = page.page(tmp_path)
    top = text.partition("## ")[0]
    assert (
        "loses to Otsu's threshold on consep: Dice -0.200 [-0.300, -0.000], better in 6 of 6 groups, p 0.070, " in top
    )
    assert "Holm < 0.001; monusac, which tells kinds" in top
    assert "Dice 0.330 [0.260, 0.390], the threshold 0.480 [0.420, 0.540].**" in top
    assert "At the level of nuclei the rule is wrong in all 4 pairs" in text
    assert "Too few: no trend under 100 outlines." in text
    lost["p_holm"] = 0.2
    (tmp_path / "pathsegmentor-small.json").write_bytes(json_bytes(run))
    assert "Holm 0.200 (the signed-rank test does not show it); monusac" in page.page(tmp_path)
    (tmp_path / "pathsegmentor-small.json").write_bytes(json_bytes(served))
    text = page.page(tmp_path)
    assert "loses to Otsu" not in text.partition("## ")[0]
    assert "the rule is wrong" not in text


def verdicts(served: dict | None, arms: dict, explain: dict | None, design: dict | None = None) -> dict[str, list[str]]:
    """What stands in the last column, by condition."""
    found: dict[str, list[str]] = {}
    for line in conditions(served, design, arms, explain, None):
        if line.startswith(("| S", "| N")):
            found.setdefault(line.split(" | ")[0][2:], []).append(line.split(" | ")[-1].removesuffix(" |"))
    return found


def test_conditions_are_told_by_the_files():
    """S2 asks that objects of two levels lose, and no others; S10 that four seeds of five name the causal object."""
    row = {"interval": True, "value": -0.2, "low": -0.3, "high": -0.1, "p_holm": 0.01}
    same = row | {"value": 0.0, "low": -0.1, "high": 0.1}
    levels = {"nuclei epithelial": 2, "tissue epithelial": 2, "nuclei nucleus": 1}
    words = {name: {"levels": count, "no_constant": same} for name, count in levels.items()}
    served = {"figures": {"words": words}, "controls": {}, "trends": {}}
    lost = dict.fromkeys(levels, row)

    def told(**arm: dict) -> dict[str, list[str]]:
        return verdicts(served, {NO_LEVEL: {"by_object_one_scale": arm}} if arm else {}, None)

    assert told()["S2"] == ["not measured"] * 2
    assert told(**lost)["S2"] == ["**not met**", "not measured"]
    assert told(**lost | {"nuclei nucleus": same})["S2"] == ["met", "not measured"]
    assert told(**lost | {"nuclei nucleus": same, "tissue epithelial": same})["S2"] == ["**not met**", "not measured"]
    region = verdicts(served, {NO_REGION: {"by_object_one_scale": lost}}, None)
    assert region["S2"] == ["not measured", "reported"]
    assert told()["S2, control"] == ["met"]
    assert told()["S11"] == ["not measured"] * 2


def test_importance_is_held_against_its_controls():
    """A gain over plain pooling that another slide's masks leave is no object's; where there is none, none is lost."""

    def told(control: float, aware: float = 0.8, low: float = 0.1) -> list[str]:
        auroc = {PLAIN: 0.7, OBJECT_AWARE: aware, CONTROL: control}
        runs = [
            {
                "seed": seed,
                "causal": "red",
                "objects": {"red": {"excess": (0.2, low * (seed < 4), 0.3)}},
                "auroc": auroc,
            }
            for seed in range(5)
        ]
        found = verdicts(None, {}, {"causal_first": 3, "rank_agreement": 0.2, "seeds": runs[: 4 if low > 0.1 else 5]})
        assert found["S10"] == ["**not met**"]
        return found["S10, control"]

    assert told(0.6) == ["**not met**", "met", "reported"]
    assert told(0.75, low=0.15) == ["met", "**not met**", "reported"]
    assert told(0.6, aware=0.7) == ["**not met**", "not measured", "reported"]


def test_exchanged_prompts_are_judged_where_the_right_one_exceeds_the_largest_object():
    def told(right: float, cost_low: float, gap_low: float = -0.1) -> str:
        figure = {"value": 0.4, "low": 0.3, "high": 0.5}
        row = {
            "outlines": 5, "dice": figure | {"value": right}, "permuted": figure, "largest_object": figure,
            "gap": figure | {"low": gap_low},
        }  # fmt: skip
        found = {"exchanged": {"consep": row}, "wrong": {"permuted": {"consep": figure | {"low": cost_low}}}}
        (verdict,) = verdicts({"figures": found, "controls": {}, "trends": {}}, {}, None)["S1, control"]
        return verdict

    assert told(0.6, 0.1) == "met"
    assert told(0.6, -0.1) == told(0.6, 0.1, gap_low=0.1) == "**not met**"
    assert told(0.4, 0.1) == "not measured"


@pytest.mark.parametrize("name", [SERVED, SLIDE_OBJECTS])
@pytest.mark.parametrize("content", [{"weights_sha256": "cd" * 32}, {}])
def test_figures_of_other_weights_are_not_shown_beside_the_served_ones(tmp_path, served, name, content):
    (tmp_path / "pathsegmentor-small.json").write_bytes(json_bytes(served))
    write_comparisons(tmp_path)
    (tmp_path / name).write_bytes(json_bytes(content))
    with pytest.raises(RunInvalid, match=f"{name} is not of the weights of pathsegmentor-small.json"):
        page.page(tmp_path)


def test_the_published_page_is_made_of_its_figures():
    assert RESULTS.with_suffix(".md").read_text(encoding="utf-8") == page.page(RESULTS)


def test_a_prompt_that_is_not_supported_says_why(tmp_path, served):
    row = next(iter(served["supports"].values())) | {"supported": False, "unmet": ["one region only"]}
    (tmp_path / "pathsegmentor-small.json").write_bytes(json_bytes(served | {"supports": {"a prompt": row}}))
    write_comparisons(tmp_path)
    assert "| no: one region only |" in page.page(tmp_path)


def test_an_arm_is_compared_on_the_same_pairs(tmp_path, served, worse):
    for run in (served, worse):
        (tmp_path / f"{run['recipe']}.json").write_bytes(json_bytes(run))
    write_comparisons(tmp_path)
    text = page.page(tmp_path)
    assert "| consep | -0.20 [-0.20, -0.20] | 6 (0) | 32 |" in text
    assert "The interval, not adjusted, leaves out 0 for consep; elsewhere nothing is told apart." in text
    assert "| 0.80 [0.80, 0.80]; design: 1.00 [1.00, 1.00] |" in text
    assert "took 0.4 of 8 CPU-hours" in text  # 660 s twice
    found = comparisons([served, worse])[SPECIALISTS]
    assert found["by_set"]["consep"]["p_holm"] == found["by_set"]["consep"]["p"]
    assert found["by_object"]["nuclei nucleus"]["pairs"] == 12


def test_without_the_published_design_nothing_is_compared(worse):
    assert "by_set" not in comparisons([worse])[SPECIALISTS]


def test_an_arm_is_told_by_its_recipe():
    recipe = {
        "name": "trial",
        "stage": "segmentor",
        "data": {"sets": ["consep"]},
        "network": {"decoder": {}, "text": {"tower": "words"}},
    }
    assert arm_of(recipe) == "trial"
    assert arm_of(recipe | {"name": "pathsegmentor-small"}) == DESIGN
    assert arm_of(recipe | {"publish": {}}) == "trial"  # which arm is served does not make it another
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


def test_recall_is_compared_of_what_was_taught_to_be_absent(served):
    """CoNSeP outlines epithelial nuclei; of lymphocytes it knows nothing, and the naive arm finds none."""
    outside = copy.deepcopy(served)
    pairs = outside["pairs"]
    pairs["external"] = [1.0] * len(pairs["set"])
    pairs["prompt"] = [prompt.replace("inflammatory", "lymphocyte") for prompt in pairs["prompt"]]
    deaf = copy.deepcopy(outside) | {"arm": NAIVE}
    deaf["pairs"]["recall"] = [recall and 0.0 for recall in deaf["pairs"]["recall"]]
    assert "| consep | bad | image_" in "\n".join(page._unshown(outside["pairs"]))
    assert page._unshown(served["pairs"]) == []
    found = comparisons([outside, deaf])[NAIVE]["external_recall"]
    assert {name: row["value"] for name, row in found.items()} == {"nuclei lymphocyte": -1.0}


def test_the_level_is_also_left_out_at_one_scale(served):
    arm = copy.deepcopy(served) | {"arm": NO_LEVEL}
    arm["pairs"]["common_scale"] = [value and value / 2 for value in served["pairs"]["common_scale"]]
    found = comparisons([served, arm])[NO_LEVEL]
    assert found["by_object"]["nuclei epithelial"]["value"] == 0.0
    assert found["by_object_one_scale"]["nuclei epithelial"]["value"] < -0.2


def test_a_verdict_says_where_nothing_is_shown():
    rows = {"a": (0.2, 0.01), "b": (-0.2, 0.01), "c": (0.2, 0.05), "d": (0.1, 0.049)}
    family = {name: {"value": value, "p_holm": p} for name, (value, p) in rows.items()}
    assert verdict(family) == "better in a, d; worse in b; neither shown in c"


def test_two_runs_of_one_arm_are_not_mixed(tmp_path, served):
    for name in ("pilot", "pathsegmentor-small"):
        (tmp_path / f"{name}.json").write_bytes(json_bytes(served | {"recipe": name}))
    with pytest.raises(RunInvalid, match="pathsegmentor-small and pilot are both the arm “published design” on consep"):
        write_comparisons(tmp_path)


def test_only_one_network_is_served(tmp_path, served, worse):
    for run in (served, worse | {"served": True}):
        (tmp_path / f"{run['recipe']}.json").write_bytes(json_bytes(run))
    with pytest.raises(RunInvalid, match="pathsegmentor-small and pathsegmentor-specialist-consep are both served"):
        write_comparisons(tmp_path)


def test_an_arm_is_served_and_still_held_against_the_published_design(tmp_path, served, worse):
    design = served | {"served": False}
    arm = worse | {"recipe": "trial", "arm": ONE_QUERY, "served": True, "seed": 77}
    for run in (design, arm):
        (tmp_path / f"{run['recipe']}.json").write_bytes(json_bytes(run))
    write_comparisons(tmp_path)
    text = page.page(tmp_path)
    assert f"| **{ONE_QUERY}**, served | `trial` |" in text
    assert "Recipe `training/recipes/trial.toml`, seed 77" in text
    assert "| consep | -0.20 [-0.20, -0.20] | 6 (0) | 32 |" in text
    gap = design["figures"]["selection"]["gap"]
    assert f"gap {gap['value']:+.2f} [" in text.partition("## Which query answers")[2].partition("## ")[0]
    assert "| S9 | the gap to the best query and the arm of one query are told | gap +" in text
