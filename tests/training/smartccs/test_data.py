"""The fields of smears: their split, what is known of a place, and the crops that a detector learns from."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from gateway.domain.bethesda import AGC
from tests.training.data import made
from training.data.common import Source
from training.data.hashes import SAME_IMAGE_BITS, near_pairs
from training.data.split import PARTS
from training.errors import LeakageRefused, TaskInvalid
from training.files import sha256_file
from training.smartccs.data import DISTRACTOR, UNKNOWN, Field, counts, load, seen, supported
from training.smartccs.field_crops import FieldCrops, crop

pytestmark = pytest.mark.training


@pytest.fixture
def smears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> made.Made:
    folder = made.Made(tmp_path / "data")
    made.smears(folder)
    monkeypatch.setenv("PATHSERVE_DATA", str(folder.root))
    return folder


def field(boxes: list[list[float]], classes: list[int]) -> Field:
    source = Source("made.jpg", "made", "0" * 64, "CC0", "A", "", "g")
    return Field(source, "g", "train", 0.25, np.array(boxes, np.float64).reshape(-1, 4), np.array(classes, np.int64))


def test_parts_share_no_block_and_no_picture_taken_twice(smears: made.Made) -> None:
    twice = simplejpeg.decode_jpeg((smears.root / "cytology_cric/images/cric_000.jpg").read_bytes())
    again = smears.root / "cytology_cric/images/cric_005.jpg"  # of another block
    again.write_bytes(simplejpeg.encode_jpeg(twice, quality=60))
    smears.rows[5]["sha256"] = sha256_file(again)
    smears.finish()
    fields = load()
    blocks = {part: {field.source.group for field in fields if field.part == part} for part in PARTS}
    assert sorted(len(groups) for groups in blocks.values()) == [0, 1, 2]  # blocks 0 and 2 are one now
    assert {"cric_block_00", "cric_block_02"} in blocks.values()
    assert seen(load("train")).groups == {"cytology_cric": tuple(sorted(blocks["train"]))}
    with pytest.raises(TaskInvalid, match="'val'"):
        load("val")


def test_a_field_of_a_shared_block_is_never_measured_on(smears: made.Made) -> None:
    smears.finish()
    held_back = next(field for field in load() if field.part == "test")
    names = [f"cric_{number:03}.jpg" for number in range(6)]
    smears.table(
        "cytology_cric/fields.csv",
        [{"file_name": name, "leak_risk": str(int(name[:-4] == held_back.name))} for name in names],
    )
    with pytest.raises(LeakageRefused, match=held_back.name):
        load()


def test_the_real_split_has_every_supported_class_in_every_part(real_data: None) -> None:
    fields = load()
    found = counts(fields)
    assert found[0].tolist() == [1108, 147, 244, 43, 128, 39, 0]
    assert supported(found) == (True, True, True, True, True, False, False)
    learned = [seen([field for field in fields if field.part == part]) for part in PARTS]
    for one, other in combinations(learned, 2):
        assert not set(one.groups["cytology_cric"]) & set(other.groups["cytology_cric"])
        hashes = [np.array([int(word, 16) for word in part.hashes], np.uint64) for part in (one, other)]
        assert len(near_pairs(*hashes, SAME_IMAGE_BITS)) == 0
    assert [sum(f.negative for f in fields if f.part == part) for part in PARTS] == [0, 1, 5]


def test_a_place_is_of_the_nucleus_it_hits_and_unknown_elsewhere_in_an_abnormal_field() -> None:
    mixed = field([[0, 0, 20, 20], [12, 0, 20, 20], [60, 60, 20, 20]], [0, 4, DISTRACTOR])
    points = np.array([[10, 10], [20, 10], [15, 10], [70, 80], [70, 81]])
    assert mixed.classes_at(points).tolist() == [0, 4, 0, DISTRACTOR, UNKNOWN]
    assert field([[0, 0, 20, 20], [60, 60, 20, 20]], [0, DISTRACTOR]).classes_at(points[-1:]).tolist() == [0]
    assert field([], []).classes_at(points[:1]).tolist() == [UNKNOWN]
    assert not field([], []).negative


def test_a_lone_glandular_cell_is_a_target_of_the_last_column() -> None:
    image = np.zeros((600, 600, 3), np.uint8)
    found = crop(np.random.default_rng(2), field([[290, 290, 20, 20]], [AGC]), image, 512, 0.85)
    assert found.columns_K.tolist() == [5]
    assert len(found.boxes_K4) == 1
    assert not found.negative


@pytest.mark.parametrize("seed", range(8))
def test_a_crops_boxes_lie_on_the_cells_whatever_its_scale_and_orientation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = np.full((300, 400, 3), 250, np.uint8)
    corners = np.array([(column * 80 + 30, row * 90 + 30) for row in range(3) for column in range(4)])
    for left, top in corners:
        image[top : top + 24, left : left + 16] = 20
    boxes = np.hstack([corners, np.tile([16, 24], (12, 1))]).astype(float).tolist()
    part = field(boxes, [1, 0, DISTRACTOR] * 4)
    found = crop(rng, part, image, 256, float(rng.uniform(0.5, 1)))
    assert len(found.nuclei_M4) > 0
    assert 0 < len(found.boxes_K4) < len(found.nuclei_M4)
    assert set(found.columns_K.tolist()) == {0}
    for x, y, width, height in (found.nuclei_M4 * 256).tolist():
        inside = found.image_HWC[round(max(y - height / 2, 0) + 2) : round(y + height / 2 - 2)]
        assert inside[:, round(max(x - width / 2, 0) + 2) : round(x + width / 2 - 2)].max() < 40
    dark = (found.image_HWC.max(2) < 40) & (found.image_HWC.max(2) > 2)  # cells; beyond the field it is black
    assert 0.5 < dark.sum() / (found.nuclei_M4[:, 2:].prod(1).sum() * 256**2) < 1.6


def test_crops_are_a_function_of_seed_and_number_and_every_field_comes_once_an_epoch(smears: made.Made) -> None:
    smears.finish()
    fields = [replace(entry, classes_N=np.full(3, number)) for number, entry in enumerate(load(), 1)]
    crops, again = FieldCrops(fields, 600, seed=3), FieldCrops(fields, 600, seed=3)
    assert np.array_equal(crops[7].image_HWC, again[7].image_HWC)
    assert not np.array_equal(crops[7].image_HWC, FieldCrops(fields, 600, seed=4)[7].image_HWC)
    drawn = [set(crops[number].columns_K.tolist()) for number in range(6, 12)]  # a whole field is in every crop
    assert sorted(drawn, key=min) == [{0}, {1}, {2}, {3}, {4}, {5}]


def test_colours_vary_and_cells_stay_where_they_are(smears: made.Made) -> None:
    smears.finish()
    plain, varied = FieldCrops(load(), 64, seed=3), FieldCrops(load(), 64, seed=3, by_factor=0.2)
    pairs = [(plain[number], varied[number]) for number in range(4)]
    factors = []
    for one, other in pairs:
        assert np.array_equal(one.nuclei_M4, other.nuclei_M4)
        seen_HWC = (one.image_HWC > 20) & (one.image_HWC < 200)  # neither ink without end nor glass
        densities = (-np.log((crop.image_HWC[seen_HWC] + 1.0) / 256) for crop in (one, other))
        factors.append(float(np.divide(*reversed(list(densities))).mean()))
    assert all(0.75 < factor < 1.25 for factor in factors)
    assert len({round(factor, 2) for factor in factors}) > 1
