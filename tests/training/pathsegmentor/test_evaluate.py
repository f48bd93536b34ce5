"""Every figure of a network, on made images and an answerer whose worth is known."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gateway.domain.prompts import UNSPECIFIED, Level, Triple, read_prompts, words
from tests.training.pathsegmentor.painted import Painter, item
from tests.training.pathsegmentor.small_networks import smallest
from training.nn.checkpoints import round_to_fp16, save_weights
from training.pathsegmentor import data, figures
from training.pathsegmentor.calibrate import FEWEST_OF_A_LABEL, FEWEST_PAIRS, Presence, presence, rows, spoken, support
from training.pathsegmentor.comparisons import COMPARISONS, DESIGN, SPECIALISTS
from training.pathsegmentor.evaluate import _card, _Measured, controls, finish, main
from training.pathsegmentor.measuring import measure, measure_presence
from training.pathsegmentor.model import PathSegmentor
from training.pathsegmentor.pairs import (
    RESAMPLES,
    SEED,
    Pair,
    Table,
    auroc,
    auroc_figure,
    auroc_within,
    difference,
    mean,
)
from training.pathsegmentor.predictor import WINDOW_PX, Asked, TextPrompted, blended, raised_cosine, starts
from training.pathsegmentor.recipe import (
    SegmentorRecipe,
    SpecialistRecipe,
)
from training.pathsegmentor.republish import main as republish
from training.pathsegmentor.specialists import Specialist
from training.runs import Run, RunWriter, open_run, parse_recipe, read_toml
from training.statistics import bootstrap

EPITHELIAL = "nuclei-level epithelial in colon pathology"
HALF = dict.fromkeys(Level, Presence(0.5, 1.0, 1.0))


@pytest.fixture(scope="module")
def table() -> Table:
    return Table.of(list(measure(Painter(), [item(number) for number in range(12)], 7, variants=True)))


@pytest.fixture(scope="module")
def network() -> PathSegmentor:
    return smallest()


def test_a_right_answer_scores_one_and_absent_pairs_have_no_dice(table):
    own = table.where(table["own"] == 1)
    there = own["present"] == 1
    assert len(own) == 36
    assert int((~there).sum()) == 4
    np.testing.assert_array_equal(own["dice"][there], 1.0)
    assert np.isnan(own["dice"][~there]).all()
    assert (own["box_instances"][there] == 1.0).all()  # squares fill their boxes


def test_the_unspecified_region_is_asked_too_and_not_counted_twice(table):
    assert set(table["prompt"][table["own"] == 0]) == {
        Triple(Level.NUCLEI, name, UNSPECIFIED).text for name in ("inflammatory", "epithelial", "nucleus")
    }
    assert figures.overlap(table)["by_set"]["consep"]["dice"]["pairs"] == 32


def test_leaving_out_a_word_costs_what_it_carries(table):
    found = figures.words(table)
    assert found["nuclei epithelial"]["no_level"]["value"] < -0.1  # everything is marked
    assert found["nuclei nucleus"]["no_level"]["value"] == 0.0
    assert found["nuclei epithelial"]["no_constant"]["value"] == found["nuclei epithelial"]["no_region"]["value"] == 0.0
    assert found["nuclei epithelial"]["levels"] == 1


def test_a_wrong_level_or_object_costs_all(table):
    found = figures.wrong(table)
    assert found["wrong_level"]["consep"]["low"] == 1.0
    assert found["wrong_object"]["consep"]["low"] == 1.0
    assert 0 < found["permuted"]["consep"]["value"] < 1
    assert np.isnan(table["wrong_object"][np.char.find(table["prompt"], " nucleus ") >= 0]).all()


def test_exchanged_prompts_are_told_beside_the_largest_object(table):
    own = table.where((table["own"] == 1) & (table["present"] == 1))
    whole = np.char.find(own["prompt"], " nucleus ") >= 0
    assert (own["largest_object"][whole] == 1.0).all()  # every kind is a part of it
    assert (own["largest_object"][~whole] < 1.0).any()
    row = figures.exchanged(table)["consep"]
    assert row["outlines"] == 3
    assert row["dice"]["value"] == 1.0
    assert row["gap"]["value"] == pytest.approx(row["permuted"]["value"] - row["largest_object"]["value"], abs=1e-4)


def test_queries_are_chosen_by_the_truth_only_for_the_oracle(table):
    found = figures.selection(table)
    assert found["gap"]["value"] == 0.0
    assert found["best"]["value"] == 1.0


def test_otsu_marks_both_kinds(table):
    found = figures.baselines(table)["otsu"]
    assert set(found) == {"consep"}
    assert found["consep"]["pairs"] == 12
    assert figures.against(table, "otsu", figures.everything)["consep"]["value"] > 0.1


def test_absence_is_scored_within_sets_beside_its_control(table):
    found = figures.absence(table, table, HALF)
    row = found["by_set"]["consep"]
    assert row["pooled"]["value"] == row["within_prompts"]["value"] == 1.0
    assert (row["present"], row["absent"]) == (32, 4)
    assert 0.1 < row["shuffled"]["value"] < 0.9
    assert row["false_mask"]["neither"]["value"] == 0.0
    assert row["missed"]["head"]["value"] == 0.0
    assert found["mean_within_sets"] == {}  # one object is ever absent: not three


def test_a_score_that_reads_the_prompt_alone_tells_nothing_within_prompts():
    """Three objects, present in 9, 6 and 3 of 12 images; presence says how often, and never looks."""
    base = {"set": "a", "external": False, "part": "test", "level": "nuclei", "own": True, "area": 0.1}
    pairs = [
        Pair(
            group=f"{n % 4}", image=f"{n}", prompt=f"nuclei-level {name} in colon pathology",
            present=(n + often) % 12 < often, presence=float(often), **base,
        )
        for name, often in (("epithelial", 9), ("spindle", 6), ("inflammatory", 3))
        for n in range(12)
    ]  # fmt: skip
    table = Table.of(pairs)
    found = figures.absence(table, table, HALF)
    row = found["by_set"]["a"]
    assert row["objects"] == 3
    assert row["pooled"]["value"] == row["prompt_alone"]["value"] > 0.7
    assert [row["within_prompts"][key] for key in ("value", "low", "high")] == [0.5, 0.5, 0.5]
    assert found["mean_within_sets"] == {"within_prompts": 0.5, "pooled": row["pooled"]["value"]}
    told = figures.by_level(table, HALF)["nuclei"]["within_prompts"]
    assert {prompt: (of["present"], of["absent"]) for prompt, of in told["by_prompt"].items()} == {
        "a · nuclei-level epithelial in colon pathology": (9, 3),
        "a · nuclei-level spindle in colon pathology": (6, 6),
        "a · nuclei-level inflammatory in colon pathology": (3, 9),
    }
    # A prompt that validation never asked has no share there: neither that control nor a Beta test.
    unknown = figures.absence(table, table.where(table["prompt"] == table["prompt"][0]), HALF)["by_set"]["a"]
    assert unknown["prompt_alone"] == unknown["beta_auroc"] == {}
    assert set(unknown["missed"]) == {"neither", "head"}


def test_the_area_within_prompts_is_the_mean_of_the_areas_in_every_resample():
    rng = np.random.default_rng(6)
    prompts, groups = np.repeat(["p", "q"], 30), np.tile(np.repeat([f"{n}" for n in range(6)], 5), 2)
    positive, scores = rng.random(60) < 0.5, rng.integers(0, 5, 60).astype(float)
    found = auroc_within(scores, positive, prompts, groups)

    def score(index: np.ndarray) -> float:
        parts = (index[prompts[index] == name] for name in ("p", "q"))
        return float(np.mean([auroc(scores[part], positive[part]) for part in parts]))

    slow = bootstrap(score, groups, count=RESAMPLES, seed=SEED)
    assert [found[key] for key in ("value", "low", "high")] == pytest.approx(
        [slow.value, slow.low, slow.high], abs=1e-4
    )


def test_a_mask_where_nothing_is_counts_and_the_head_takes_it_away():
    base = {"set": "a", "external": False, "part": "test", "level": "nuclei", "own": True}
    pairs = [
        Pair(
            group=str(n),
            image=str(n),
            prompt=EPITHELIAL,
            present=n % 2 == 0,
            presence=2.0 - 4 * (n % 2),
            area=0.1,
            **base,
        )
        for n in range(12)
    ]
    table = Table.of(pairs)
    row = figures.absence(table, table, HALF)["by_set"]["a"]
    assert row["false_mask"]["neither"]["value"] == 1.0
    assert row["false_mask"]["head"]["value"] == row["missed"]["head"]["value"] == 0.0
    assert row["false_area"]["value"] == pytest.approx(0.1)


def test_the_threshold_is_where_youdens_index_is_greatest():
    rng = np.random.default_rng(5)
    there = np.arange(200) % 2 == 0
    logits = np.where(there, 4.0, 1.0) + rng.normal(0, 0.3, 200)  # the head is biased: ½ would call all present
    table = Table.of(
        [
            Pair(
                set="a", external=False, part="val", group=str(n), image=str(n), prompt="p", level="nuclei", own=True,
                present=bool(there[n]), presence=float(logits[n]),
            )
            for n in range(200)
        ]
    )  # fmt: skip
    found = presence(table)["nuclei"]
    assert (found.youden, found.pooled) == (1.0, False)
    called = found.probability(logits) >= found.threshold
    np.testing.assert_array_equal(called, there)
    assert presence(table.where(there)) == dict.fromkeys(Level, Presence(0.5, 1.0, 0.0, pooled=True))


def test_a_level_has_its_own_rule_from_enough_pairs_and_groups_of_both_labels():
    def rows(level: str, count: int, logit: float, present: bool, groups: int = 9) -> list[Pair]:
        return [
            Pair(
                set="a", external=False, part="val", group=f"{n % groups}", image=f"{level} {n}", prompt="p",
                level=level, own=True, present=present, presence=logit,
            )
            for n in range(count)
        ]  # fmt: skip

    nuclei = rows("nuclei", 90, 1.0, True) + rows("nuclei", 10, 3.0, True) + rows("nuclei", 100, 0.0, False)
    few = rows("tissue", FEWEST_OF_A_LABEL, 3.0, True) + rows("tissue", FEWEST_OF_A_LABEL - 1, 2.0, False)
    found = presence(Table.of(nuclei + few))
    assert [level for level, rule in found.items() if rule.pooled] == ["tissue", "cell"]
    assert found["tissue"] == found["cell"]
    assert found["nuclei"].speaks(np.array([0.0, 1.0])).tolist() == [False, True]
    # In the rule of all levels each has an equal say, however many pairs it has.
    assert found["cell"].speaks(np.array([2.0, 3.0])).tolist() == [False, True]
    assert found["cell"].youden == 0.55  # a tenth of nuclei, all of tissue
    one_more = Table.of(nuclei + few + rows("tissue", 1, 2.0, False))
    tissue = presence(one_more)["tissue"]
    assert (tissue.pooled, tissue.youden) == (False, 1.0)
    assert spoken(presence(one_more), one_more).sum() == 100 + FEWEST_OF_A_LABEL
    again = one_more.replaced("own", np.where(one_more["level"] == "tissue", 0.0, 1.0))
    assert presence(again)["tissue"].pooled  # the same windows, asked without a region
    few_groups = rows("tissue", 99, 3.0, True) + rows("tissue", 99, 2.0, False, groups=4)
    assert presence(Table.of(nuclei + few_groups))["tissue"].pooled


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_threshold_at_the_edge_is_not_rounded_away(sign):
    logits = sign * np.array([900.0, 901.0, 902.0, 903.0])
    pairs = [
        Pair(
            set="a", external=False, part="val", group=str(n), image=str(n), prompt="p", level="tissue", own=True,
            present=bool(n % 2), presence=float(logit),
        )
        for n, logit in enumerate(logits)
    ]  # fmt: skip
    found = presence(Table.of(pairs))["tissue"]
    assert 0 < found.threshold < 1
    said, there = found.speaks(logits), np.array([False, True, False, True])
    assert found.youden == said[there].mean() - said[~there].mean()


def with_column(table: Table, **changed: object) -> Table:
    record = table.record()
    return Table.read(record | {name: [value] * len(table) for name, value in changed.items()})


def test_support_needs_pairs_groups_and_more_than_its_floor(table):
    assert support(table, ("HE",))[EPITHELIAL]["supported"]
    few = table.where(np.cumsum(table["prompt"] == EPITHELIAL) < FEWEST_PAIRS)
    assert support(few)[EPITHELIAL]["unmet"] == ["fewer than 5 pairs or 5 groups"]
    worse = table.replaced("served", table["whole_image"])
    assert support(worse)[EPITHELIAL]["unmet"] == ["not above its floor"]
    unknown = Triple(Level.TISSUE, "gland", "colon")
    told = rows({unknown: 3}, support(table))
    assert [(row.train_images, row.val_dice, row.supported) for row in told] == [(3, None, False)]


def test_support_is_of_what_is_served():
    deaf = HALF | {"nuclei": Presence(0.99, 1.0, 0.0)}  # the answerer says 3 where something is: .95
    pairs = measure(Painter(), [item(number) for number in range(12)], 7, variants=False, rules=deaf)
    found = support(Table.of(list(pairs)))[EPITHELIAL]
    assert (found["val_dice"], found["val_dice_drawn"], found["supported"]) == (0.0, 1.0, False)


def test_support_needs_a_stain_of_the_card_and_more_than_one_region(table):
    found = support(table, ("PAS",))[EPITHELIAL]
    assert (found["val_dice"], found["supported"]) == (None, False)
    assert "measured in another stain only" in found["unmet"]
    anywhere = Triple(Level.NUCLEI, "epithelial", UNSPECIFIED).text
    assert support(table)[anywhere]["unmet"] == ["one region only"]
    other = with_column(table, organ="breast", set="other")
    assert support(Table.joined(table, other))[anywhere]["supported"]
    unknown = with_column(table, organ=UNSPECIFIED, set="unknown")
    assert support(Table.joined(table, unknown))[anywhere]["unmet"] == ["one region only"]  # known, that is


def test_a_polyp_is_supported_once_glands_are_known_that_are_none(table):
    polyp, gland = (f"tissue-level {name} in colon pathology" for name in ("polyp", "gland"))
    there = table.where(table["prompt"] == EPITHELIAL)
    there = there.where(there["present"] == 1)
    both = Table.joined(with_column(there, prompt=polyp), with_column(there, prompt=gland))
    assert support(both)[polyp]["unmet"] == ["not told from what outlines it"]
    assert support(both)[gland]["supported"]
    mucosa = with_column(there, prompt=gland, image="mucosa")
    without = with_column(there, prompt=polyp, image="mucosa", present=0.0, dice=None, served=None)
    assert support(Table.joined(both, mucosa, without))[polyp]["supported"]


def test_prompts_with_one_outline_count_once():
    def pair(prompt: str, outline: int, dice: float, image: str) -> Pair:
        return Pair(
            set="a", external=False, part="val", group=image, image=image, prompt=prompt, level="tissue", own=True,
            present=True, dice=dice, served=dice, outline=outline,
        )  # fmt: skip

    pairs = [
        pair(prompt, outline, dice, f"{n}")
        for prompt, outline, dice in (("gland", 0, 0.9), ("polyp", 0, 0.7), ("tumor", 1, 0.2))
        for n in range(3)
    ]
    table = Table.of(pairs)
    found = figures.overlap(table)
    assert found["by_set"]["a"]["served"]["value"] == pytest.approx(0.5)  # .8 and .2
    assert found["prompts"]["value"] == pytest.approx(0.5)
    assert difference(table["dice"], np.zeros(9), table)["value"] == pytest.approx(0.5)
    # A prompt of too few groups has no say in a mean over prompts.
    rare = Table.joined(table, Table.of([pair("stroma", 2, 0.0, "0")]))
    assert figures.overlap(rare)["prompts"] == found["prompts"] | {"left_out": 1}
    assert figures.overlap(Table.of(pairs[:2]))["prompts"] == {}


def test_presence_is_asked_of_windows_and_of_what_is_impossible():
    made = item(0)
    image, category = np.full((64, 600, 3), (200, 150, 180), np.uint8), np.zeros((64, 600), np.uint8)
    image[:, 340:] = 245
    image[:, :64], category[:, :64] = made.image_HWC, made.category_HW
    wide = dataclasses.replace(made, level=Level.TISSUE, image_HWC=image, category_HW=category)
    known = {(Level.TISSUE, "glomerulus")}
    table = Table.of(list(measure_presence(Painter(), [wide], known)))
    assert sorted(set(table["image"])) == ["image_0 0,0", "image_0 0,192"]  # beyond is glass
    found = figures.by_level(table, HALF)["tissue"]
    assert found["present"] == 3
    assert found["absent"] == {"outlined": 3, "impossible": 2, "impossible, no region": 2}
    assert found["absent_objects"] == {"glomerulus": 2, "inflammatory": 1, "epithelial": 1, "nucleus": 1}
    assert found["missed"]["served"]["value"] == 1.0  # the answerer knows nuclei only
    assert found["false_mask"]["impossible"]["drawn"]["value"] == 0.0


def test_a_card_tells_images_and_stains(table):
    strange = with_column(table, set="strange", stain="PAS", served=0.0, presence=0.0)
    told = _Measured(HALF, table, Table.joined(table, strange), table, Table.joined(table, strange), {})
    found = {row["name"]: row for row in _card(told, ("HE",))}
    assert found["mean Dice over prompts, held-out groups"]["value"] == 1.0
    assert found["Dice, held-out groups of strange (PAS)"]["value"] == 0.0
    for title in (
        "share with a mask, windows of held-out groups without",
        "share without a mask, windows of held-out groups with",
    ):
        assert found[f"{title} the object, nuclei"]["value"] == 0.0
    told_of = {row["images"] for row in found.values()}
    assert told_of == {12, 4}  # of 32 pairs; of absent ones 4


def test_a_table_survives_json(table):
    again = Table.read(table.record())
    np.testing.assert_array_equal(again["prompt"], table["prompt"])
    np.testing.assert_allclose(again["dice"], table["dice"], atol=1e-4)


def test_few_groups_have_no_interval():
    assert mean(np.array([0.2, 0.4, np.nan]), np.array(["a", "b", "c"])) == {
        "value": 0.3, "low": 0.3, "high": 0.3, "pairs": 2, "groups": 2, "interval": False,
    }  # fmt: skip
    assert mean(np.array([np.nan]), np.array(["a"])) == {}
    assert auroc_figure(np.arange(3.0), np.ones(3, bool), np.array(["a", "b", "c"])) == {}


def test_the_same_prompt_twice_gives_the_same_bits_alone_or_among_others(network):
    found = controls(TextPrompted(network), [item(1), item(2)])
    assert found["same_twice"] == found["same_mask_among_others"] == found["images"] == 2
    assert found["largest_difference"] < 1e-5


def test_a_word_that_is_kept_from_the_network_changes_nothing_any_more(network):
    image, other = item(1).image_HWC, Triple(Level.TISSUE, "epithelial", "colon")
    ask = Asked(item(1).triples[1])
    blind = TextPrompted(network, without=("level",))
    at_nuclei, at_tissue = (blind(image, [Asked(triple)], "consep") for triple in (ask.triple, other))
    np.testing.assert_array_equal(at_nuclei.probabilities_PHW, at_tissue.probabilities_PHW)
    seeing = TextPrompted(network)
    assert not np.array_equal(
        seeing(image, [ask], "consep").probabilities_PHW, seeing(image, [Asked(other)], "consep").probabilities_PHW
    )


def test_sides_that_are_no_multiple_are_answered_at_their_own_size(network):
    ask = [Asked(item(1).triples[0])]
    said = TextPrompted(network)(np.full((50, 70, 3), 200, np.uint8), ask, "x", queries=True)
    assert said.probabilities_PHW.shape == (1, 50, 70)
    assert said.queries_PQHW.shape == (1, 4, 50, 70)
    # Of several windows each may choose another query.
    assert TextPrompted(network)(np.full((50, 270, 3), 200, np.uint8), ask, "x", queries=True).queries_PQHW is None


def test_windows_cover_and_blend_to_the_same_answer_where_they_agree():
    assert starts(WINDOW_PX) == [0]
    assert starts(600) == [0, 192, 344]
    image = np.random.default_rng(0).integers(0, 255, (300, 600, 3), np.uint8)
    said = blended(image, lambda tile: (tile[None, ..., 0] / 64.0 - 2.0, np.array([tile.max() / 10.0]), None))
    np.testing.assert_allclose(said.probabilities_PHW[0], 1 / (1 + np.exp(2.0 - image[..., 0] / 64.0)), rtol=1e-5)
    assert said.presence_P[0] == image.max() / 10.0
    spoken = iter([True, *5 * [False]])
    served_HW = said.served(lambda _: np.array([next(spoken)]))[0]
    np.testing.assert_array_equal(served_HW[:256, :256], image[:256, :256, 0] > 128)
    assert not served_HW[256:].any()
    assert not served_HW[:, 256:].any()
    assert (raised_cosine(256) > 0).all()


def test_a_few_pixels_are_neither_present_nor_absent():
    small = item(0)
    category = np.zeros_like(small.category_HW)
    category[:4, :10] = 3  # 40 px
    pairs = measure(Painter(), [dataclasses.replace(small, category_HW=category)], 0, variants=False)
    found = {pair.prompt: (pair.present, np.isnan(pair.dice)) for pair in pairs if pair.own}
    assert found[EPITHELIAL] == (None, True)
    assert found["nuclei-level inflammatory in colon pathology"] == (False, True)


def test_the_quick_interval_of_a_mean_is_the_bootstraps():
    rng = np.random.default_rng(2)
    values, groups = rng.uniform(0, 1, 40), np.repeat([f"g{n}" for n in range(8)], 5)
    slow = bootstrap(lambda index: float(values[index].mean()), groups, count=RESAMPLES, seed=SEED)
    found = mean(values, groups)
    assert (found["value"], found["low"], found["high"]) == tuple(
        round(number, 4) for number in (slow.value, slow.low, slow.high)
    )


RECIPE = """
name = "pathsegmentor-small"
system = "pathsegmentor"
stage = "segmentor"
seed = 5
data = {sets = ["consep", "dsb2018", "glomeruli", "ebhi", "camelyon"], side_px = 32}
training = {iterations = 1, batch = 1, rate = 1e-3, warmup = 0, validate_every = 1}
mpp_by_level = {tissue = 1.0, cell = 0.25, nuclei = 0.25}

[network]
width = 16
encoder = {arch = "conv", widths = [8, 8, 8, 8], convs = [1, 1, 1, 1]}
text = {tower = "words", layers = 1, heads = 2, ffn = 16}
decoder = {queries = 4, layers = 1, heads = 2, ffn = 16}

[publish]
model = "pathseg"
title = "Tests"
mpp = 0.25
tile_px = 256
statement = "Tests."
organs = [{code = "71854001", scheme = "SCT", display = "Colon"}]
stains = ["HE"]
limits = ["Nobody trained it."]
"""
SPECIALIST = """
name = "tiny-glomeruli"
system = "pathsegmentor"
stage = "specialist"
seed = 5
data = {sets = ["glomeruli"], side_px = 32}
network = {width = 8, encoder = {arch = "conv", widths = [8, 8, 8, 8], convs = [1, 1, 1, 1]}}
training = {iterations = 1, batch = 1, rate = 1e-3, warmup = 0, validate_every = 1}
mpp_by_level = {tissue = 1.0, cell = 0.25, nuclei = 0.25}
"""


def untrained(folder: Path, text: str) -> Run:
    """A finished run whose weights are of chance."""
    writer = RunWriter(folder, text.encode(), resume=False)
    raw = read_toml(folder / "recipe.toml")
    metrics: dict[str, Any] = {"training": {"iterations": 1, "cpu_s": 1.0}}
    torch.manual_seed(raw["seed"])
    if raw["stage"] == "segmentor":
        recipe = parse_recipe(SegmentorRecipe, raw)
        model = PathSegmentor(recipe.network, len(words())).eval()
        round_to_fp16(model)
        measured, table = finish(model, recipe)
        (folder / "prompts.csv").write_bytes(table)
        metrics |= measured | {"network": {"parameters": 1, "vocabulary": len(words())}}
    else:
        classes = [(Level.TISSUE, "glomerulus")]
        model = Specialist(parse_recipe(SpecialistRecipe, raw).network, classes)
        round_to_fp16(model)
        metrics["network"] = {"parameters": 1, "classes": classes}
    save_weights(writer.weights_path, model)
    return writer.finish(metrics=metrics, seed=raw["seed"])


def test_the_command_measures_whole_runs_and_compares_them(segmentation_data, tmp_path):
    runs = [untrained(tmp_path / name, text) for name, text in (("served", RECIPE), ("specialist", SPECIALIST))]
    out = tmp_path / "out"
    assert main([*(str(run.path) for run in runs), "--out", str(out)]) == 0
    served, specialist = (json.loads((out / f"{run.name}.json").read_text()) for run in runs)
    assert (served["arm"], specialist["arm"]) == (DESIGN, SPECIALISTS)
    assert (served["served"], specialist["served"]) == (True, False)
    # What is sealed with the run is what is measured of it again.
    assert runs[0].metrics["supports"] == served["supports"]
    assert runs[0].metrics["presence"] == served["presence"]
    assert runs[0].metrics["absence_by_level"] == served["absence_by_level"]
    told = {row.triple.text: row for row in read_prompts((runs[0].path / "prompts.csv").read_text())}
    glomerulus = told["tissue-level glomerulus in kidney pathology"]
    assert (glomerulus.val_dice, glomerulus.supported) == (None, False)  # in another stain than the card's
    assert glomerulus.train_images > 0
    card = {row["name"]: row for row in runs[0].metrics["card"]}
    assert "mean Dice over prompts, held-out groups" not in card  # in the card's stain no prompt has three groups
    test = data.load("test", ("glomeruli",))
    tissue = served["absence_by_level"]["test"]["tissue"]
    assert {"glomerulus", "polyp"} <= tissue["absent_objects"].keys()
    assert tissue["absent"]["impossible"] > 0
    assert set(served["figures"]["overlap"]["external"]["by_set"]) == {"monuseg", "monusac"}
    assert served["controls"]["same_twice"] == served["controls"]["images"] > 4
    assert served["data"]["split"]["glomeruli"]["test"]["images"] == len(test)
    assert (out / "cases-glomeruli.jpg").is_file()
    gap = json.loads((out / COMPARISONS).read_text())[SPECIALISTS]["by_set"]
    assert gap["glomeruli"]["pairs"] == len(test)


def test_a_finished_run_is_published_by_its_own_recipe_and_no_other(segmentation_data, tmp_path, capsys):
    """What the card shows is measured anew in its stains; the manifest tells by which recipe the weights came."""
    own = RECIPE[: RECIPE.index("[publish]")]
    run = untrained(tmp_path / "trained", own)
    (tmp_path / "trained" / "log.jsonl").write_text("{}\n")
    glomerulus = "tissue-level glomerulus in kidney pathology"
    assert "measured in another stain only" not in run.metrics["supports"][glomerulus]["unmet"]
    for name, text in (("asked", RECIPE), ("other", RECIPE.replace("rate = 1e-3", "rate = 1e-2"))):
        (tmp_path / f"{name}.toml").write_text(text)
    out = tmp_path / "published"
    assert republish([str(run.path), str(tmp_path / "other.toml"), "--out", str(out)]) == 1
    assert (
        "differs from that of the run trained in training, not in its section publish alone" in capsys.readouterr().err
    )
    assert not out.exists()
    assert republish([str(run.path), str(tmp_path / "asked.toml"), "--out", str(out)]) == 0
    published = open_run(out)
    assert published.recipe["publish"]["model"] == "pathseg"
    assert published.weights_sha256 == run.weights_sha256
    assert published.metrics["presence"] == run.metrics["presence"]
    assert published.metrics["supports"][glomerulus]["unmet"][0] == "measured in another stain only"
    assert published.manifest["trained_as"] == {"recipe_sha256": run.manifest["recipe_sha256"]}
    assert {"prompts.csv", "log.jsonl"} <= {path.name for path in out.iterdir()}
    assert republish([str(run.path), str(tmp_path / "asked.toml"), "--out", str(out)]) == 1
    assert "The run folder published is not empty" in capsys.readouterr().err
