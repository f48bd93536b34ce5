"""Sets of other laboratories, read from folders as they were published."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from gateway.domain.bethesda import AGC, HSIL, LSIL, NILM
from tests.training.data.made import Made
from training.errors import DataMissing, TaskInvalid
from training.smartccs.data import DISTRACTOR, counts, supported
from training.smartccs.second_sources import load

pytestmark = pytest.mark.training

PICTURE = np.full((40, 50, 3), (20, 120, 220), np.uint8)  # blue, green, red as OpenCV writes


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Made(tmp_path)
    folder.table("any.csv", [{"a": "b"}])
    folder.vouch("any.csv")
    monkeypatch.setenv("PATHSERVE_DATA", str(folder.finish()))
    return tmp_path


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), PICTURE)


def test_outlined_cells_of_clusters(data: Path) -> None:
    for kind in ("Superficial-Intermediate", "Parabasal", "Metaplastic", "Koilocytotic", "Dyskeratotic"):
        folder = data / f"cytology_sipakmed/im_{kind}/im_{kind}"
        picture(folder / "001.bmp")
        picture(folder / "CROPPED/001_01.bmp")
        (folder / "001_cyt01.dat").write_text("5.5,6\n20,6\n12,30.5\n")
        (folder / "001_cyt02.dat").write_text("30,30\n50,40\n")
        (folder / "001_nuc01.dat").write_text("9,9\n11,11\n")
    fields = load("sipakmed")
    assert [field.classes_N.tolist() for field in fields] == [[NILM] * 2] * 3 + [[LSIL] * 2]  # no dyskeratotic cell
    assert fields[0].boxes_N4.tolist() == [[5.5, 6, 14.5, 24.5], [30, 30, 20, 10]]
    assert fields[0].read()[0, 0].tolist() == [220, 120, 20]
    assert {field.source.tier for field in fields} == {"B"}
    assert counts(fields)[2, :3].tolist() == [6, 0, 2]  # all of it is test
    assert not any(supported(counts(fields)))
    (data / "cytology_sipakmed/im_Parabasal/im_Parabasal/001_cyt01.dat").write_text("nothing")
    with pytest.raises(DataMissing, match="001_cyt01"):
        load("sipakmed")


def test_single_cells_whose_grades_bethesda_joins(data: Path) -> None:
    kinds = ("normal_superficiel", "normal_intermediate", "normal_columnar", "light_dysplastic", "moderate_dysplastic")
    for kind in (*kinds, "severe_dysplastic", "carcinoma_in_situ"):
        picture(data / f"cytology_herlev/{kind}/1-2-001.BMP")
        picture(data / f"cytology_herlev/{kind}/1-2-001-d.bmp")
    fields = load("herlev")
    assert [field.classes_N.tolist() for field in fields] == [[NILM]] * 3 + [[LSIL]] + [[HSIL]] * 3
    assert fields[0].boxes_N4.tolist() == [[0, 0, 50, 40]]
    assert fields[0].mpp == 0.201


def test_liquid_based_fields_with_lesions_and_organisms(data: Path) -> None:
    names = ["ascus", "asch", "lsil", "hsil", "scc", "agc", "trichomonas", "candida", "flora", "herps", "actinomyces"]
    folder = data / "cytology_liquid"
    for part in ("train", "test"):
        picture(folder / part / "a.png")
        boxes = [(1, 6), (1, 7), (1, 2)] if part == "train" else []
        said = {
            "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
            "images": [{"id": 1, "file_name": "a.png"}],
            "annotations": [{"image_id": i, "category_id": c, "bbox": [1, 2, 3 + c, 4]} for i, c in boxes],
        }
        (folder / f"{part}.json").write_text(json.dumps(said))
    first, second = load("liquid")
    assert first.classes_N.tolist() == [AGC, DISTRACTOR, 3]
    assert first.abnormal.tolist() == [True, False, True]
    assert first.boxes_N4[0].tolist() == [1, 2, 9, 4]
    assert second.boxes_N4.shape == (0, 4)
    said["categories"][0]["name"] = "other"
    said["annotations"] = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}]
    (folder / "test.json").write_text(json.dumps(said))
    with pytest.raises(DataMissing, match="'other'"):
        load("liquid")


def test_absent_and_unknown_sets_are_named(data: Path) -> None:
    with pytest.raises(DataMissing, match="cytology_herlev"):
        load("herlev")
    with pytest.raises(TaskInvalid, match="'cric'"):
        load("cric")
