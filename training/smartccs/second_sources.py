"""Public sets of other laboratories that do not lie among this project's data: readers of their published layouts.

| set | what | licence | tier |
|---|---|---|---|
| SIPaKMeD (Plissiti et al. 2018, doi 10.1109/ICIP.2018.8451588) | clusters with outlined cells | academic use | B |
| Herlev (Jantzen et al. 2005, "Pap-smear benchmark data") | an image a cell | academic use | B |
| the detection set of Liang et al. 2018 (arXiv 1810.05952) | liquid-based fields with boxes | none stated | C |

Each is read from a folder of its name among the data, and is for measuring only: all of it is test. A licence is to be
verified at download. Boxes are of whole cells, those of CRIC of one size about a nucleus: the scale differs too.
Patients are not told; a group is an image.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from gateway.domain.bethesda import HSIL, LSIL, NAMES, NILM
from training.data.common import Source, data_root
from training.errors import DataMissing, TaskInvalid
from training.files import sha256_file
from training.smartccs.data import DISTRACTOR, Field

_SIPAKMED = {
    "Superficial-Intermediate": NILM,
    "Parabasal": NILM,
    "Metaplastic": NILM,
    "Koilocytotic": LSIL,
}
"""Koilocytes are what Bethesda calls LSIL. Dyskeratotic cells are not read: they may be of any squamous class."""
_HERLEV = {
    "normal_superficiel": NILM,
    "normal_intermediate": NILM,
    "normal_columnar": NILM,
    "light_dysplastic": LSIL,
    "moderate_dysplastic": HSIL,
    "severe_dysplastic": HSIL,
    "carcinoma_in_situ": HSIL,
}
"""Bethesda's HSIL is moderate and severe dysplasia and carcinoma in situ."""
_LIQUID = {
    **{name.replace("-", "").lower(): number for number, name in enumerate(NAMES) if number != NILM},
    **dict.fromkeys(("trichomonas", "candida", "flora", "herps", "actinomyces"), DISTRACTOR),
}
_HERLEV_MPP = 0.201


def sipakmed(folder: Path) -> Iterator[Field]:
    """`im_<kind>/im_<kind>/<n>.bmp` and `<n>_cyt<k>.dat`, a cell's outline as lines `x,y`. Raises DataMissing."""
    for kind, number in _SIPAKMED.items():
        for file in _files(folder, f"im_{kind}/im_{kind}", ".bmp"):
            outlines = sorted(file.parent.glob(f"{file.stem}_cyt*.dat"))
            boxes = [_bounds(outline) for outline in outlines]
            yield _field(file, "SIPaKMeD", "academic use", "B", None, boxes, [number] * len(boxes))


def herlev(folder: Path) -> Iterator[Field]:
    """`<kind>/<name>.BMP`, a cell each, beside `<name>-d.bmp`, its outline; 0.201 µm per pixel. Raises DataMissing."""
    for kind, number in _HERLEV.items():
        for file in _files(folder, kind, ".bmp"):
            if not file.stem.endswith("-d"):
                whole = (0.0, 0.0, *_size(file))
                yield _field(file, "Herlev", "academic use", "B", _HERLEV_MPP, [whole], [number])


def liquid(folder: Path) -> Iterator[Field]:
    """`{train,test}.json` as COCO writes boxes, over `{train,test}/<file>`; classes of lesions, and organisms, which
    are distractors. NILM nuclei are not annotated. Raises DataMissing, also for a class that is none of these."""
    for part in ("train", "test"):
        try:
            said = json.loads((folder / f"{part}.json").read_bytes())
            names = {row["id"]: row["name"] for row in said["categories"]}
            found: dict[int, list[tuple[list[float], str]]] = {row["id"]: [] for row in said["images"]}
            for row in said["annotations"]:
                found[row["image_id"]].append((row["bbox"], names[row["category_id"]]))
            files = {row["id"]: row["file_name"] for row in said["images"]}
        except (OSError, ValueError, KeyError, TypeError):
            raise DataMissing(f"{part}.json of the liquid-based set cannot be read. Fetch the set again.") from None
        for image, cells in found.items():
            for _, name in cells:
                if name not in _LIQUID:
                    raise DataMissing(f"The class {name!r} is none of the liquid-based set's. Fetch the set again.")
            boxes, numbers = [box for box, _ in cells], [_LIQUID[name] for _, name in cells]
            file = folder / part / files[image]
            yield _field(file, "Liquid-based cytology (Liang 2018)", "none stated", "C", None, boxes, numbers)


READERS: Mapping[str, Callable[[Path], Iterator[Field]]] = {"sipakmed": sipakmed, "herlev": herlev, "liquid": liquid}


def load(name: str) -> tuple[Field, ...]:
    """The fields of one of READERS, from the folder `cytology_<name>` among the data. Raises TaskInvalid for another
    name, DataMissing where the set is not there."""
    if name not in READERS:
        raise TaskInvalid(f"There is no second source {name!r}. Name one of: {', '.join(READERS)}.")
    folder = data_root() / f"cytology_{name}"
    if not folder.is_dir():
        raise DataMissing(f"The data folder holds no {folder.name}. Put the set there as it was published.")
    return tuple(READERS[name](folder))


def _field(
    file: Path,
    dataset: str,
    licence: str,
    tier: str,
    mpp: float | None,
    boxes: "list[tuple[float, ...]] | list[list[float]]",
    numbers: list[int],
) -> Field:
    try:
        digest = sha256_file(file)
    except OSError:
        raise DataMissing(f"{file.name} of {dataset} cannot be read. Fetch the set again.") from None
    path = file.relative_to(data_root()).as_posix()
    source = Source(path, dataset, digest, licence, tier, "", path)
    boxes_N4 = np.array(boxes, np.float64).reshape(-1, 4)
    return Field(source, path, "test", mpp, boxes_N4, np.array(numbers, np.int64))


def _files(folder: Path, kind: str, ending: str) -> list[Path]:
    """A class's files, in the order of their names; both cases of the ending are found."""
    inside = folder / kind
    if not inside.is_dir():
        raise DataMissing(f"The set has no folder {inside.name}. Put it there as it was published.")
    return sorted(file for file in inside.iterdir() if file.suffix.lower() == ending)


def _bounds(outline: Path) -> tuple[float, ...]:
    """Left, top, width, height of the points of a file."""
    try:
        with outline.open(newline="") as file:
            points_P2 = np.array([[float(value) for value in row[:2]] for row in csv.reader(file) if row])
        low, high = points_P2.min(0), points_P2.max(0)
        return (*low.tolist(), *(high - low).tolist())
    except (OSError, ValueError):
        raise DataMissing(f"{outline.name} holds no outline of a cell. Fetch the set again.") from None


def _size(file: Path) -> tuple[float, float]:
    try:
        with Image.open(file) as image:
            return float(image.width), float(image.height)
    except (OSError, UnidentifiedImageError):
        raise DataMissing(f"{file.name} cannot be decoded: it is damaged. Fetch the set again.") from None
