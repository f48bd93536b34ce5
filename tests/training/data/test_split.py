"""A set has one split: by group, balanced, near-duplicates together, the same every time."""

from pathlib import Path

import numpy as np
import pytest

from tests.training.data.made import Made, oral
from training.data import split
from training.data.dataset import load
from training.data.split import PARTS, SHARES, deal, held_out
from training.errors import SplitInvalid
from training.pathbench import check_split

pytestmark = pytest.mark.training


def test_groups_stay_together_and_classes_are_in_every_part(made_data: Path) -> None:
    dataset = load("oral")
    found = held_out(dataset)
    for group in np.unique(dataset.groups_N):
        assert len(set(found.parts_N[dataset.groups_N == group])) == 1
    for part, share in zip(PARTS, SHARES, strict=True):
        inside = found.indices(part)
        assert abs(len(inside) / len(dataset) - share) < 0.06
        assert set(dataset.labels_N[inside]) == {0, 1}
    assert sum(len(found.indices(part)) for part in PARTS) == len(dataset)


def test_a_set_has_the_same_split_every_time_and_under_every_task(made_data: Path) -> None:
    dataset = load("oral")
    first, again = held_out(dataset), held_out(load("oral"))
    assert np.array_equal(first.parts_N, again.parts_N)
    assert first.sha256 == again.sha256
    swapped = held_out(dataset.merge({"tumour": [dataset.classes[1]], "none": [dataset.classes[0]]}))
    assert np.array_equal(first.parts_N, swapped.parts_N)
    assert first.sha256 != swapped.sha256


def test_near_duplicates_of_different_groups_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Made(tmp_path)
    oral(folder, groups=16, each=1)
    twin = np.clip(folder.mosaic(224, 224).astype(int), 0, 245).astype(np.uint8)
    labels = ("normal oral epithelium", "oral squamous cell carcinoma")
    for number in range(2):
        folder.image(f"he_oral/images/twin_{number}.jpg", twin + np.uint8(6 * number), labels[number], f"twin_{number}")
    rows = [{"file": row["path"].removeprefix("he_oral/"), "magnification": "100x"} for row in folder.rows]
    folder.table("he_oral/labels.csv", rows)
    monkeypatch.setenv("PATHSERVE_DATA", str(folder.finish()))
    dataset = load("oral")
    found = held_out(dataset)
    assert dataset.groups_N[-2:].tolist() == ["twin_0", "twin_1"]
    assert found.groups_N[-2:].tolist() == ["twin_0", "twin_0"]
    assert found.parts_N[-2] == found.parts_N[-1]


def test_a_class_in_too_few_groups_is_refused_unless_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Made(tmp_path)
    oral(folder, groups=12)
    normal, tumour = folder.rows[0]["label"], folder.rows[2]["label"]
    for row in folder.rows:
        row["label"] = tumour if row["group"] in ("oral_00", "oral_01") else normal
    monkeypatch.setenv("PATHSERVE_DATA", str(folder.finish()))
    with pytest.raises(SplitInvalid, match="no 'oral squamous cell carcinoma' in its"):
        held_out(load("oral"))
    assert set(held_out(load("oral"), allow_missing=True).parts_N) == set(PARTS)


def test_rare_classes_are_dealt_to_every_part_where_three_groups_have_them() -> None:
    rng = np.random.default_rng(0)
    groups_N = np.repeat(np.arange(15), 30)
    strata_N = np.where(rng.random(450) < 0.2, 1, 0)
    strata_N[np.isin(groups_N, (2, 7, 11))] = 2
    parts_N = deal(strata_N, groups_N)
    assert all(set(strata_N[parts_N == part]) == {0, 1, 2} for part in range(3))
    for group in range(15):
        assert len(set(parts_N[groups_N == group])) == 1


def test_items_without_a_label_follow_their_group() -> None:
    groups_N = np.repeat(np.arange(10), 4)
    strata_N = np.where(np.arange(40) % 4 == 0, -1, np.arange(40) % 2)
    parts_N = deal(strata_N, groups_N)
    assert all(len(set(parts_N[groups_N == group])) == 1 for group in range(10))


@pytest.mark.parametrize(("name", "rows"), [("oral", 40), ("cric_cells", 12)])
def test_a_split_is_printed_as_a_table_that_passes_the_check(
    made_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, rows: int
) -> None:
    assert split.main([name]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0] == "dataset,patient,case,slide,class,label,split,site,source_licence"
    assert len(text.splitlines()) == rows + 1
    (tmp_path / "table.csv").write_text(text)
    assert check_split.main([str(tmp_path / "table.csv")]) == 0
    (tmp_path / "table.csv").write_text(text.replace(",train,", ",test,", 1))
    assert check_split.main([str(tmp_path / "table.csv")]) == 1


def test_a_set_that_is_not_there_ends_in_one_sentence(made_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert split.main(["osteosarcoma"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "he_osteosarcoma" in error
