"""Trends of Dice on made pairs whose dependence is known."""

import numpy as np
import pytest

from training.pathsegmentor.pairs import Pair, Table
from training.pathsegmentor.trends import FEWEST_OUTLINES, curve, trends


def made(count: int = 120) -> Table:
    """Dice falls with the count; irregularity follows the count and says nothing of its own."""
    rng = np.random.default_rng(4)
    counts = rng.integers(1, 30, count)
    return Table.of(
        [
            Pair(
                set="consep",
                external=False,
                part="test",
                group=f"field {place // 6}",
                image=f"{place}",
                prompt="nuclei-level nucleus in colon pathology",
                level="nuclei",
                own=True,
                present=True,
                dice=float(np.clip(0.9 - 0.3 * np.log10(number) + rng.normal(0, 0.02), 0, 1)),
                box_union=0.5,
                pixels=256.0**2,
                count=float(number),
                instance_ratio=float(rng.uniform(0.001, 0.004)),
                dispersion_px=100.0,
                irregularity_mask=1 - 1 / number + float(rng.normal(0, 0.05)),
                irregularity_instance=float(rng.uniform(0, 0.5)),
            )
            for place, number in enumerate(counts)
        ]
    )


@pytest.fixture(scope="module")
def found():
    return trends(made())["nuclei"]


def test_a_trend_that_is_there_is_found_and_lies_in_its_band(found):
    density = found["by"]["density"]
    line = density["answers"]["dice"]["alone"]
    truth = 0.9 - 0.3 * np.array(density["x"])
    assert np.abs(np.array(line["y"]) - truth).max() < 0.05
    assert line["change"]["high"] < -0.1
    assert all(low <= value <= high for low, value, high in zip(line["low"], line["y"], line["high"], strict=True))


def test_what_only_follows_the_count_vanishes_where_the_count_is_held(found):
    of_mask = found["by"]["irregularity_mask"]["answers"]["dice"]
    assert of_mask["alone"]["change"]["high"] < -0.1
    assert abs(of_mask["partial"]["change"]["value"]) < 0.05


def test_a_constant_answer_is_flat_and_a_descriptor_without_spread_has_no_trend(found):
    assert found["by"]["size"]["answers"]["box_union"]["alone"]["change"] == {"value": 0, "low": 0, "high": 0}
    assert "dispersion" not in found["by"]


def test_too_few_outlines_make_no_trend_however_many_prompts_share_them():
    table = made()
    few = table.where(np.arange(len(table)) < FEWEST_OUTLINES - 1).replaced("outline", np.zeros(FEWEST_OUTLINES - 1))
    twice = Table.joined(few, few.replaced("prompt", np.full(len(few), "tissue-level gland in colon pathology")))
    found = trends(twice)["nuclei"]
    assert (found["pairs"], found["outlines"], found["by"]) == (198, 99, {})


def test_what_only_tells_sets_apart_is_no_trend_and_nothing_leaves_0_to_1():
    """One set is dense and well answered, the other neither; within each, density says nothing."""
    table, rng = made(), np.random.default_rng(1)
    dense = np.arange(len(table)) % 2 == 0
    table = table.replaced("set", np.where(dense, "ebhi", "glomeruli"))
    table = table.replaced("count", np.where(dense, 9.0, 2.0) + rng.integers(0, 12, len(table)))
    table = table.replaced("dice", np.clip(np.where(dense, 0.99, 0.2) + rng.normal(0, 0.02, len(table)), 0, 1))
    lines = trends(table)["nuclei"]["by"]["density"]["answers"]["dice"]
    assert all(abs(line["change"]["value"]) < 0.1 for line in lines.values())
    values = np.array([[line["y"], line["low"], line["high"]] for line in lines.values()])
    assert 0 <= values.min() <= values.max() <= 1


def test_a_curve_is_the_same_every_time():
    rng = np.random.default_rng(0)
    x, groups = rng.uniform(0, 1, 60), np.repeat(np.arange(10), 6)
    y = x**2
    arguments = (x, y, groups, np.ones(60), np.linspace(0.1, 0.9, 5), np.array([0.1, 0.9]), [])
    assert curve(*arguments) == curve(*arguments)
