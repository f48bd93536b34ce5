"""The readers of the paper's sets, on tiny files of the published layouts."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from gateway.domain.prompts import Level, Triple
from training.errors import DataMissing
from training.pathsegmentor.data import crop
from training.pathsegmentor.items import UNKNOWN, Item
from training.pathsegmentor.published import bcss, glas, pannuke, segpath

pytestmark = pytest.mark.training

RNG = np.random.default_rng(0)


def picture(side_px: int) -> np.ndarray:
    return RNG.integers(0, 256, (side_px, side_px, 3)).astype(np.uint8)


def write(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), pixels)


def objects(item: Item) -> dict[str, int]:
    """Pixels of each object that is there."""
    counts = {triple.object: int(item.mask(triple).sum()) for triple in item.triples if triple.region == item.organ}
    return {name: count for name, count in counts.items() if count}


def test_pannuke(tmp_path: Path) -> None:
    for fold, organs in (("1", ["Colon", "HeadNeck"]), ("2", ["Ovarian"]), ("3", ["Adrenal_gland"])):
        inside = tmp_path / "pannuke" / f"Fold {fold}"
        masks = np.zeros((len(organs), 256, 256, 6))
        masks[..., 5] = 1
        masks[0, :10, :10, 0], masks[0, :10, 50:60, 1] = 1, 1  # number 1 of two kinds is two nuclei
        masks[0, 100:110, :20, 4] = 7
        for path, array in (
            (f"images/fold{fold}/images.npy", RNG.uniform(0, 255, (len(organs), 256, 256, 3))),
            (f"images/fold{fold}/types.npy", np.array(organs)),
            (f"masks/fold{fold}/masks.npy", masks),
        ):
            (inside / path).parent.mkdir(parents=True, exist_ok=True)
            np.save(inside / path, array)
    items = list(pannuke(tmp_path / "pannuke"))
    assert [(one.part, one.organ) for one in items] == [
        ("train", "colon"), ("train", "head and neck"), ("val", "ovary"), ("test", "adrenal gland"),
    ]  # fmt: skip
    first = items[0]
    assert objects(first) == {"tumor": 100, "nucleus": 400, "inflammatory": 100, "epithelial": 200}
    assert len(np.unique(first.instances_HW)) == 4
    assert first.exhaustively(Triple(Level.NUCLEI, "dead", "colon"))
    assert (first.tier, first.image_HWC.shape, first.image_HWC.dtype) == ("B", (256, 256, 3), np.uint8)
    assert first.sources[0].file == "pannuke/Fold 1/images/fold1/images.npy"
    assert "BY-NC" in first.sources[0].licence
    with pytest.raises(DataMissing, match=r"images\.npy is not there"):
        next(pannuke(tmp_path / "elsewhere"))


def test_glas(tmp_path: Path) -> None:
    rows = ["name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"]
    for name, patient in (("train_1", 3), ("train_2", 5), ("train_3", 7), ("testA_1", 7)):
        rows.append(f"{name},{patient}, benign, adenomatous")
        glands = np.zeros((100, 100), np.uint8)
        glands[:50, :50], glands[60:, 60:] = 1, 2
        write(tmp_path / f"{name}.bmp", picture(100))
        write(tmp_path / f"{name}_anno.bmp", glands)
    (tmp_path / "Grade.csv").write_text("\n".join(rows))
    items = {one.name: one for one in glas(tmp_path)}
    assert {name: one.part for name, one in items.items()} == {
        "train_1": "train", "train_2": "val", "train_3": "test", "testA_1": "test",
    }  # fmt: skip
    one = items["train_1"]
    assert one.image_HWC.shape == (62, 62, 3)  # 0.62 µm per pixel, at 1
    assert objects(one) == {"gland": 31 * 31 + 25 * 25}
    assert len(np.unique(one.instances_HW)) == 3
    (tmp_path / "Grade.csv").unlink()
    with pytest.raises(DataMissing, match="Grade"):
        next(glas(tmp_path))


def test_bcss(tmp_path: Path) -> None:
    name = "TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0.2500.png"
    codes = np.full((400, 400), 2, np.uint8)
    codes[:200] = 1
    codes[200:240], codes[240:280], codes[280:320] = 3, 10, 13
    codes[-40:] = 0
    write(tmp_path / "masks" / name, codes)
    write(tmp_path / "rgbs_colorNormalized" / name, picture(400))
    (one,) = bcss(tmp_path)
    assert (one.group, one.organ, one.tier, one.image_HWC.shape) == ("TCGA-A1-A0SK", "breast", "A", (100, 100, 3))
    assert objects(one) == {
        "tumor": 5000, "stroma": 1000, "lymphocyte": 1000, "inflammatory": 2000, "plasma cell": 1000,
    }  # fmt: skip
    assert (one.category_HW[-10:] == UNKNOWN).all()
    rng = np.random.default_rng(0)
    found = crop(rng, one, Triple(Level.TISSUE, "tumor", "breast"), 100, augment=False)
    assert found.valid_HW.sum() == 9000  # what was not annotated is not valid
    assert crop(rng, one, Triple(Level.TISSUE, "necrosis", "breast"), 100, aim=False).present is False
    assert crop(rng, one, Triple(Level.TISSUE, "gland", "breast"), 100, aim=False).present is None
    (tmp_path / "masks" / name).rename(tmp_path / "masks" / "TCGA-A1-A0SK-DX1.png")
    with pytest.raises(DataMissing, match="per pixel"):
        next(bcss(tmp_path))


def test_segpath(tmp_path: Path) -> None:
    rows, kind = ["filename,train_val_test"], "MIST1_PlasmaCell"
    for slide, part in (("0012", "train"), ("0015", "test")):
        stem = f"{kind}_{slide}_034816_066560"
        mask = np.zeros((200, 200), np.uint8)
        mask[:100] = 1
        write(tmp_path / kind / f"{stem}_HE.png", picture(200))
        write(tmp_path / kind / f"{stem}_mask.png", mask)
        rows += [f"{kind}/{stem}_HE.png,{part}", f"{kind}/{stem}_mask.png,{part}"]
    (tmp_path / "MIST1_fileinfo.csv").write_text("\n".join(rows))
    items = list(segpath(tmp_path))
    assert [(one.part, one.group) for one in items] == [("train", "segpath_0012"), ("test", "segpath_0015")]
    assert items[0].image_HWC.shape == (44, 44, 3)
    assert objects(items[0]) == {"plasma cell": 22 * 44}
    assert items[0].exhaustively(Triple(Level.TISSUE, "plasma cell"))
    assert not items[0].exhaustively(Triple(Level.TISSUE, "lymphocyte"))
    (tmp_path / kind / "MIST1_PlasmaCell_0015_034816_066560_mask.png").unlink()
    with pytest.raises(DataMissing):
        list(segpath(tmp_path))
