"""Every figure of a network, on made images and an answerer whose worth is known."""

import dataclasses

import numpy as np
import pytest
import torch

from gateway.domain.prompts import UNSPECIFIED, Level, Triple, words
from tests.training.pathsegmentor.painted import Painter, item
from training.pathsegmentor import figures
from training.pathsegmentor.calibrate import FEWEST_PAIRS, Presence, presence, rows, support
from training.pathsegmentor.evaluate import controls
from training.pathsegmentor.measuring import measure
from training.pathsegmentor.model import PathSegmentor
from training.pathsegmentor.pairs import RESAMPLES, SEED, Pair, Table, auroc_figure, mean
from training.pathsegmentor.predictor import WINDOW_PX, Asked, TextPrompted, blended, raised_cosine, starts
from training.pathsegmentor.recipe import ConvEncoder, DecoderSettings, Network, WordsText
from training.statistics import bootstrap

EPITHELIAL = "nuclei-level epithelial in colon pathology"
HALF = Presence(0.5, 1.0, 1.0)


@pytest.fixture(scope="module")
def table() -> Table:
    return Table.of(list(measure(Painter(), [item(number) for number in range(12)], 7, variants=True)))


@pytest.fixture(scope="module")
def network() -> PathSegmentor:
    torch.manual_seed(1)
    settings = Network(
        width=16,
        encoder=ConvEncoder(arch="conv", widths=(8, 8, 8, 8), convs=(1, 1, 1, 1)),
        text=WordsText(tower="words", layers=1, heads=2, ffn=16),
        decoder=DecoderSettings(queries=4, layers=1, heads=2, ffn=16),
    )
    return PathSegmentor(settings, len(words())).eval()


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
    assert row["auroc"]["value"] == 1.0
    assert (row["auroc"]["present"], row["auroc"]["absent"]) == (32, 4)
    assert 0.1 < row["shuffled"]["value"] < 0.9
    assert row["false_mask"]["neither"]["value"] == 0.0
    assert row["missed"]["head"]["value"] == 0.0
    assert found["mean_within_sets"] is None  # one object is ever absent: not three


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
    found = presence(table)
    assert found.youden == 1.0
    called = found.probability(logits) >= found.threshold
    np.testing.assert_array_equal(called, there)
    assert presence(table.where(there)) == Presence(0.5, 1.0, 0.0)


def test_support_needs_pairs_groups_and_more_than_its_floor(table):
    assert support(table)[EPITHELIAL]["supported"]
    few = table.where(np.cumsum(table["prompt"] == EPITHELIAL) < FEWEST_PAIRS)
    assert not support(few)[EPITHELIAL]["supported"]
    worse = Table.read(table.record() | {"dice": table["whole_image"].tolist()})
    assert not support(worse)[EPITHELIAL]["supported"]
    unknown = Triple(Level.TISSUE, "gland", "colon")
    told = rows({unknown: 3}, support(table))
    assert [(row.train_images, row.val_dice, row.supported) for row in told] == [(3, None, False)]


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
    said = TextPrompted(network)(np.full((50, 70, 3), 200, np.uint8), [Asked(item(1).triples[0])], "x", queries=True)
    assert said.probabilities_PHW.shape == (1, 50, 70)
    assert said.queries_PQHW.shape == (1, 4, 50, 70)


def test_windows_cover_and_blend_to_the_same_answer_where_they_agree():
    assert starts(WINDOW_PX) == [0]
    assert starts(600) == [0, 192, 344]
    image = np.random.default_rng(0).integers(0, 255, (300, 600, 3), np.uint8)
    said = blended(image, 1, lambda tile: (tile[None, ..., 0] / 64.0 - 2.0, np.array([tile.max() / 10.0]), None))
    np.testing.assert_allclose(said.probabilities_PHW[0], 1 / (1 + np.exp(2.0 - image[..., 0] / 64.0)), rtol=1e-5)
    assert said.presence_P[0] == image.max() / 10.0
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
