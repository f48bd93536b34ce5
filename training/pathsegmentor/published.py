"""Public sets that the paper names and that do not lie among this project's data: readers of their published layouts.

| set | licence | tier |
|---|---|---|
| PanNuke (Gamper et al. 2020, arXiv 2003.10778) | CC BY-NC-SA 4.0 | B |
| GlaS (Sirinukunwattana et al. 2017, doi 10.1016/j.media.2016.08.008) | research only | B |
| BCSS (Amgad et al. 2019, doi 10.1093/bioinformatics/btz083) | CC0 1.0 | A |
| SegPath (Komura et al. 2023, doi 10.1016/j.patter.2023.100688) | not known here, taken as non-commercial | B |

Each is read from a folder of its name among the data. A licence is to be verified at download: the tier decides what
may be trained on it. No digest of theirs is known here, so a run names the files as they were found.
"""

import csv
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np

from gateway.domain.prompts import UNSPECIFIED, Level
from training.data.common import Source
from training.data.hashes import difference_hash
from training.errors import DataMissing
from training.files import sha256_file
from training.pathsegmentor.items import UNKNOWN, Item, item_of
from training.pathsegmentor.sets import Annotated

_PANNUKE = ("tumor", "inflammatory", "connective", "dead", "epithelial")
"""The channels of its masks; a sixth is background."""
_PANNUKE_ORGANS = {
    "Adrenal_gland": "adrenal gland",
    "Bile-duct": "bile duct",
    "HeadNeck": "head and neck",
    "Ovarian": "ovary",
    "Pancreatic": "pancreas",
}
_PANNUKE_PARTS = {"1": "train", "2": "val", "3": "test"}
_BCSS = {
    1: ("tumor",),
    2: ("stroma",),
    3: ("lymphocyte", "inflammatory"),
    4: ("necrosis",),
    6: ("blood",),
    9: ("adipose",),
    10: ("plasma cell", "inflammatory"),
    11: ("inflammatory",),
    12: ("mucus",),
    14: ("lymphatic vessel",),
    16: ("nerve",),
    18: ("blood vessel",),
}
"""The set's codes and the prompts' words. Secretions (5), metaplasia (8), acini and ducts (13) and skin adnexa (17) are
none of them."""
_BCSS_UNKNOWN = (0, 7, 15, 19, 20, 21)
"""Outside of what was annotated, excluded, undetermined; tumor in vessels or in situ, which is tumor to some; other."""


_SEGPATH = {
    "panCK_Epithelium": "epithelial",
    "aSMA_SmoothMuscle": "smooth muscle",
    "CD235a_RBC": "red blood cell",
    "CD45RB_Leukocyte": "leukocyte",
    "CD3CD20_Lymphocyte": "lymphocyte",
    "ERG_Endothelium": "endothelial",
    "MIST1_PlasmaCell": "plasma cell",
    "MNDA_MyeloidCell": "myeloid cell",
}


def pannuke(folder: Path) -> Iterator[Item]:
    """`Fold 1/images/fold1/{images,types}.npy`, `Fold 1/masks/fold1/masks.npy`, and so on: (N,256,256,3) and
    (N,256,256,6). The set's folds are the parts; patients are not told. Raises DataMissing."""
    objects = {number: (name, "nucleus") for number, name in enumerate(_PANNUKE, 1)}
    annotated = Annotated(
        level=Level.NUCLEI, objects=objects, organs=(), exhaustive=frozenset((*_PANNUKE, "nucleus")), nominal_mpp=0.25
    )
    for fold, part in _PANNUKE_PARTS.items():
        inside = folder / f"Fold {fold}"
        files = [inside / f"images/fold{fold}/images.npy", inside / f"masks/fold{fold}/masks.npy"]
        found = tuple(_source(folder, file, "PanNuke", "CC BY-NC-SA 4.0", "B") for file in files)
        images_NHWC, masks_NHWK = (np.load(file, mmap_mode="r") for file in files)
        types_N = np.load(inside / f"images/fold{fold}/types.npy")
        for index, organ in enumerate(types_N.tolist()):
            ids_HWK = np.asarray(masks_NHWK[index, ..., : len(_PANNUKE)]).astype(np.int64)
            image_HWC = np.ascontiguousarray(np.clip(images_NHWC[index], 0, 255), np.uint8)
            inside_HW = ids_HWK.any(-1)
            # Numbers of one kind may be another kind's too: they are kept apart by the kind.
            kind_HW = ids_HWK.argmax(-1)
            yield item_of(
                annotated,
                name=f"fold{fold}_{index:04}",
                of_set="pannuke",
                group=f"pannuke_{fold}_{index:04}",
                part=part,
                organ=_PANNUKE_ORGANS.get(organ, organ.lower()),
                sources=found,
                image_HWC=image_HWC,
                category_HW=np.where(inside_HW, kind_HW + 1, 0).astype(np.uint8),
                instances_HW=np.where(inside_HW, ids_HWK.max(-1) * len(_PANNUKE) + kind_HW, 0).astype(np.int32),
                mpp=annotated.nominal_mpp,
                hash_of_file=difference_hash(image_HWC),
            )


def glas(folder: Path) -> Iterator[Item]:
    """`{train,testA,testB}_<n>.bmp`, `…_anno.bmp` with a number for each gland, and `Grade.csv` with the patients;
    0.62 µm per pixel. A patient of the test images is in the test part; of the others every fifth is for validation.
    Raises DataMissing."""
    annotated = Annotated(
        level=Level.TISSUE,
        objects={1: ("gland",)},
        organs=("colon",),
        exhaustive=frozenset({"gland"}),
        nominal_mpp=0.62,
    )
    try:
        with (folder / "Grade.csv").open(newline="", encoding="utf-8-sig") as file:
            rows = [{key.strip(): value.strip() for key, value in row.items()} for row in csv.DictReader(file)]
        patients = {row["name"]: int(row["patient ID"]) for row in rows}
    except (OSError, KeyError, ValueError):
        raise DataMissing("GlaS has no readable Grade.csv with name and patient ID. Fetch the set again.") from None
    tested = {patient for name, patient in patients.items() if name.startswith("test")}
    for name, patient in patients.items():
        image_HWC = _picture(folder / f"{name}.bmp")
        glands_HW = _map(folder / f"{name}_anno.bmp")
        yield item_of(
            annotated,
            name=name,
            of_set="glas",
            group=f"glas_{patient}",
            part="test" if patient in tested else "val" if patient % 5 == 0 else "train",
            organ="colon",
            sources=tuple(
                _source(folder, folder / file, "GlaS", "research only", "B")
                for file in (f"{name}.bmp", f"{name}_anno.bmp")
            ),
            image_HWC=image_HWC,
            category_HW=(glands_HW > 0).astype(np.uint8),
            instances_HW=glands_HW.astype(np.int32),
            mpp=annotated.nominal_mpp,
            hash_of_file=difference_hash(image_HWC),
        )


def bcss(folder: Path) -> Iterator[Item]:
    """`rgbs_colorNormalized/TCGA-…_MPP-0.2500.png` and `masks/` of the same names with the set's codes; breast. Pixels
    outside of what was annotated are not known. Parts are by patient (the barcode's first twelve letters), seven to
    training of ten. Raises DataMissing."""
    annotated = Annotated(
        level=Level.TISSUE,
        objects=_BCSS,
        organs=("breast",),
        exhaustive=frozenset(name for names in _BCSS.values() for name in names),
    )
    for file in sorted((folder / "masks").glob("TCGA-*.png")):
        told = re.search(r"_MPP-([0-9.]+)\.png$", file.name)
        if told is None:
            raise DataMissing(f"{file.name} does not tell its µm per pixel. Fetch BCSS again.")
        picture = folder / "rgbs_colorNormalized" / file.name
        image_HWC, codes_HW = _picture(picture), _map(file)
        patient = file.name[:12]
        yield item_of(
            annotated,
            name=file.stem,
            of_set="bcss",
            group=patient,
            part=_PARTS_OF_TEN[zlib.crc32(patient.encode()) % 10],
            organ="breast",
            sources=tuple(_source(folder, one, "BCSS", "CC0 1.0", "A") for one in (picture, file)),
            image_HWC=image_HWC,
            category_HW=np.where(np.isin(codes_HW, _BCSS_UNKNOWN), UNKNOWN, codes_HW).astype(np.uint8),
            instances_HW=None,
            mpp=float(told[1]),
            hash_of_file=difference_hash(image_HWC),
        )


def segpath(folder: Path) -> Iterator[Item]:
    """`<stain>_fileinfo.csv` (`filename`, `train_val_test`) and `<stain>_<kind>/…_HE.png` with `…_mask.png` of 0 and 1.

    One kind of cell an image, stained and annotated as a region; the others are not known. The split is the set's own;
    a group is a slide, the number after the kind. 40x, taken as 0.22 µm per pixel; organs are not told. Raises
    DataMissing.
    """
    for kind, name in _SEGPATH.items():
        annotated = Annotated(
            level=Level.TISSUE,
            objects={1: (name,)},
            organs=(UNSPECIFIED,),
            exhaustive=frozenset({name}),
            nominal_mpp=0.22,
            mpp_known=False,
        )
        table = folder / f"{kind.split('_')[0]}_fileinfo.csv"
        if not table.is_file():
            continue  # each kind is a download of its own
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.DictReader(file) if row["filename"].endswith("_HE.png")]
        for row in rows:
            picture = folder / kind / Path(row["filename"]).name
            mask = picture.with_name(picture.name.replace("_HE.png", "_mask.png"))
            image_HWC = _picture(picture)
            yield item_of(
                annotated,
                name=picture.stem.removesuffix("_HE"),
                of_set="segpath",
                group="segpath_" + picture.name.removeprefix(f"{kind}_").split("_")[0],
                part=row["train_val_test"],
                organ=UNSPECIFIED,
                sources=tuple(_source(folder, one, "SegPath", "not known", "B") for one in (picture, mask)),
                image_HWC=image_HWC,
                category_HW=(_map(mask) > 0).astype(np.uint8),
                instances_HW=None,
                mpp=annotated.nominal_mpp,
                hash_of_file=difference_hash(image_HWC),
            )


_PARTS_OF_TEN = (*("train",) * 7, "val", "test", "test")

READERS: Mapping[str, Callable[[Path], Iterator[Item]]] = {
    "pannuke": pannuke,
    "glas": glas,
    "bcss": bcss,
    "segpath": segpath,
}
"""By the name of the set, which is the name of its folder."""


def _source(folder: Path, file: Path, dataset: str, licence: str, tier: str) -> Source:
    if not file.is_file():
        raise DataMissing(f"The data folder holds no {dataset}: {file.name} is not there. Fetch the set again.")
    name = f"{folder.name}/{file.relative_to(folder)}"
    return Source(name, dataset, sha256_file(file), licence, tier, "")


def _picture(file: Path) -> np.ndarray:
    image = cv2.imread(str(file), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise DataMissing(f"{file.name} is not there, or is damaged. Fetch its set again.")
    return image


def _map(file: Path) -> np.ndarray:
    numbers = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    if numbers is None or numbers.ndim != 2:
        raise DataMissing(f"{file.name} is not there, or is no map of one channel. Fetch its set again.")
    return numbers
