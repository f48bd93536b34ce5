"""Every set behind one interface: order, labels, groups, boxes, masks, and what is refused."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.training.data.made import Made, consep, oral
from training.data import cric_cells
from training.data.common import decode_jpeg
from training.data.consep import nuclei
from training.data.dataset import load
from training.errors import DataMissing, TaskInvalid
from training.files import sha256_file

pytestmark = pytest.mark.training


def test_items_come_in_a_fixed_order_with_label_group_and_cohort(made_data: Path) -> None:
    dataset = load("oral")
    assert [source.file for source in dataset.sources] == sorted(source.file for source in dataset.sources)
    assert dataset.labels_N[:4].tolist() == [0, 0, 1, 1]
    assert dataset.groups_N[:3].tolist() == ["oral_00", "oral_00", "oral_01"]
    assert set(dataset.cohort_N) == {"100x", "400x"}
    assert {source.set for source in dataset.sources} == {"he_oral"}
    assert dataset.images().shape == (40, 224, 224, 3)
    file = made_data / dataset.sources[3].file
    assert np.array_equal(dataset.read(3), decode_jpeg(file.read_bytes()))


def test_a_cell_is_the_square_around_its_nucleus(made_data: Path) -> None:
    dataset = load("cric_cells")
    assert len(dataset) == 18
    assert Counter(dataset.labels_N.tolist()) == {0: 12, 1: 6}
    assert dataset.classes == ("NILM", "abnormal")
    assert {dataset.strata[k] for k in dataset.strata_N} == {"NILM", "LSIL", "HSIL"}
    assert dataset.read(0).shape == (224, 224, 3)
    field = decode_jpeg((made_data / dataset.sources[0].file).read_bytes())
    inner = dataset.boxes_N4[0]
    assert inner.tolist() == [54, 34, 146, 126]
    resized = dataset.read(0)[::2, ::2][40:60, 40:60].mean((0, 1))
    there = field[34 + 33 : 34 + 50, 54 + 33 : 54 + 50].mean((0, 1))
    assert np.abs(resized - there).max() < 12
    assert dataset.read(2).shape == (224, 224, 3)  # at the edge: mirrored


def test_a_box_beyond_the_border_mirrors_the_image(made_data: Path) -> None:
    dataset = load("cric_cells")
    field = decode_jpeg((made_data / dataset.sources[2].file).read_bytes())
    left, top, right, bottom = dataset.boxes_N4[2].tolist()
    assert (left, bottom) == (-44, 245)
    mirrored = np.pad(field, ((0, 46), (44, 0), (0, 0)), mode="reflect")
    expected = mirrored[top:bottom, left + 44 : right + 44]
    crop = cric_cells.load()
    object.__setattr__(crop, "tile_px", None)
    assert np.array_equal(crop.read(2), expected)


def test_a_nucleus_is_of_the_kind_of_most_of_its_pixels(made_data: Path) -> None:
    dataset = load("consep")
    assert dataset.classes == ("inflammatory cells", "epithelial nuclei", "spindle-shaped nuclei")
    assert dataset.labels_N.tolist() == [0, 0, 1, 1, 2, -1]
    mask = dataset.read_mask(0)
    assert set(np.unique(mask)) == {0, 1, 2}
    assert dataset.categories[2 - 1] == "inflammatory cell"
    assert nuclei(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint16)).tolist() == [0, 0, 0, 0]


def test_merged_classes_keep_items_and_strata(made_data: Path) -> None:
    dataset = load("consep")
    merged = dataset.merge(
        {"epithelial": ["epithelial nuclei"], "other": ["inflammatory cells", "spindle-shaped nuclei"]}
    )
    assert merged.labels_N.tolist() == [1, 1, 0, 0, 1, -1]
    assert np.array_equal(merged.strata_N, dataset.strata_N)
    assert dataset.merge({"epithelial": ["epithelial nuclei"]}).labels_N.tolist() == [-1, -1, 0, 0, -1, -1]
    with pytest.raises(TaskInvalid, match="'goblet cells'"):
        dataset.merge({"other": ["goblet cells"]})


def test_what_is_not_there_is_refused(made_data: Path) -> None:
    with pytest.raises(TaskInvalid, match="crc9, oral"):
        load("atlas")
    with pytest.raises(DataMissing, match="he_osteosarcoma"):
        load("osteosarcoma")
    with pytest.raises(TaskInvalid, match="has no masks"):
        load("oral").read_mask(0)


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        ({"group": ""}, "no group for he_oral/images/00_1.jpg"),
        ({"label": "dysplasia"}, "'dysplasia' is none of"),
        ({"licence_tier": "B"}, "tier B"),
    ],
)
def test_rows_that_cannot_be_trusted_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: dict[str, str], sentence: str
) -> None:
    folder = Made(tmp_path)
    oral(folder, groups=2)
    folder.rows[1].update(harm)
    monkeypatch.setenv("PATHSERVE_DATA", str(folder.finish()))
    with pytest.raises(DataMissing, match=sentence):
        load("oral")


def test_a_changed_label_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, table = Made(tmp_path), "he_oral/labels.csv"
    oral(folder, groups=2)
    folder.vouch(table)
    monkeypatch.setenv("PATHSERVE_DATA", str(folder.finish()))
    assert len(load("oral")) == 4
    (tmp_path / table).write_text((tmp_path / table).read_text().replace("100x", "400x", 1))
    with pytest.raises(DataMissing, match=r"labels\.csv differs from its sha256"):
        load("oral")


@pytest.mark.parametrize("harm", [b"no picture", None], ids=["no JPEG", "cut off"])
def test_a_damaged_picture_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: bytes | None) -> None:
    folder = Made(tmp_path)
    oral(folder, groups=2)
    path = tmp_path / folder.rows[1]["path"]
    path.write_bytes(harm or path.read_bytes()[:2000])
    folder.rows[1]["sha256"] = sha256_file(path)  # the manifest vouches for the damage
    monkeypatch.setenv("PATHSERVE_DATA", str(folder.finish()))
    dataset = load("oral")
    assert dataset.read(0).shape == (224, 224, 3)
    with pytest.raises(DataMissing, match=r"00_1\.jpg cannot be decoded"):
        dataset.read(1)


def test_a_damaged_mask_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Made(tmp_path)
    consep(folder)
    row = next(row for row in folder.rows if row["path"].startswith("seg_consep/masks"))
    (tmp_path / row["path"]).write_bytes(b"no mask")
    row["sha256"] = sha256_file(tmp_path / row["path"])
    monkeypatch.setenv("PATHSERVE_DATA", str(folder.finish()))
    with pytest.raises(DataMissing, match="is not a mask of one channel"):
        load("consep")
