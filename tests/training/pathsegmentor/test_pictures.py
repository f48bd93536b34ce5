"""Pictures: which cases are shown is a matter of rank; trends are well-formed SVG."""

import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pytest

from tests.training.pathsegmentor.painted import Painter, item
from training.pathsegmentor.measuring import measure
from training.pathsegmentor.pairs import Pair, Table
from training.pathsegmentor.pictures import case, ranked, sheet, trend_picture, write_pictures


def pair(number: int, dice: float, *, own: bool = True, dataset: str = "a") -> Pair:
    return Pair(
        set=dataset,
        external=False,
        part="test",
        group=str(number),
        image=f"{number:02}",
        prompt="p",
        level="nuclei",
        own=own,
        present=True,
        dice=dice,
    )


def test_ranks_are_quantiles_of_dice_within_a_set():
    table = Table.of(
        [pair(number, number / 20) for number in range(21)]
        + [pair(30, 1.0, own=False), pair(31, np.nan), pair(32, 0.3, dataset="b")]
    )
    found = {(name, rank): table["image"][row] for name, rank, row in ranked(table)}
    assert found[("a", "good")] == "19"
    assert found[("a", "typical")] == "10"
    assert found[("a", "bad")] == "01"
    assert {rank for name, rank in found if name == "b"} == {"good", "typical", "bad"}


def test_equal_dice_falls_to_the_earlier_image():
    table = Table.of([pair(number, 0.5) for number in (3, 1, 2)])
    assert [table["image"][row] for _, _, row in ranked(table)] == ["03", "02", "01"]


def test_a_case_outlines_truth_and_mask():
    shown = item(0)
    truth = shown.category_HW == 2
    picture = case(shown, truth, np.zeros_like(truth))
    assert picture.shape == (224, 448, 3)
    left, right = picture[:, :224], picture[:, 224:]
    assert not np.array_equal(left, right)
    np.testing.assert_array_equal(right, cv2.resize(shown.image_HWC, (224, 224), interpolation=cv2.INTER_AREA))
    decoded = cv2.imdecode(np.frombuffer(sheet([picture, picture]), np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (224, 448 * 2 + 6, 3)


@pytest.mark.parametrize("tier", ["A", "B"])
def test_only_images_that_may_be_shown_are_drawn(tmp_path, tier):
    items = [item(number, tier=tier) for number in range(6)]
    pairs = Table.of(list(measure(Painter(), items, 0, variants=False))).record()
    write_pictures(tmp_path, Painter(), items, {"pairs": pairs, "trends": {}})
    assert [path.name for path in tmp_path.iterdir()] == (["cases-consep.jpg"] if tier == "A" else [])


def test_a_trend_is_a_picture_with_both_answers():
    line = {"y": [0.2, 0.4], "low": [0.1, 0.3], "high": [0.3, 1.0], "change": {}}
    both = {"alone": line, "partial": line}
    svg = trend_picture({"x": [0.0, 1.0], "answers": {"dice": both, "box_union": both}}, "size", "nuclei")
    root = ElementTree.fromstring(svg)
    texts = "".join(root.itertext())
    assert "union-box oracle" in texts
    assert "size and density held" in texts
    assert len(root.findall(".//{*}polyline")) == 4
    inside = [point.split(",")[1] for shape in root.findall(".//{*}polygon") for point in shape.get("points").split()]
    assert min(map(float, inside)) >= 18  # a band does not leave the plot
