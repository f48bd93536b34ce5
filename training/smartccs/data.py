"""Fields of smears with their annotated nuclei, and the one split of them.

CRIC Cervix (doi 10.1038/s41597-021-00933-8): conventional smears, 0.245 µm per pixel. A nucleus is annotated by a
point; its box is a square of one size about it, so an overlap of boxes measures the distance of points. Not every cell
is annotated: only a field without any abnormal nucleus tells that the places between the annotated ones are negative.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from gateway.domain.bethesda import CLASSES, NAMES, NILM
from training.data.common import Source, data_root, decode_jpeg, read_source, read_table
from training.data.dataset import Dataset
from training.data.dataset import load as load_set
from training.data.seen import Seen
from training.data.split import PARTS, held_out
from training.errors import DataMissing, LeakageRefused, TaskInvalid

MPP = 0.245
DISTRACTOR, UNKNOWN = -1, -2
"""Beside the classes' numbers (0 NILM, 1 to 6 abnormal): an organism or reactive cell, which no slide's class rests on;
and a place of which nothing is known."""
LEAST_TRAINING_CELLS = 30


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """One field and what is annotated in it.

    boxes_N4: float64 left, top, width, height in pixels, which may reach beyond the field; classes_N: int64, the
    number of each one's Bethesda class, or DISTRACTOR; group: what stays on one side of a split; part: its side; mpp:
    µm per pixel, None where it is not known.
    """

    source: Source
    group: str
    part: str
    mpp: float | None
    boxes_N4: np.ndarray
    classes_N: np.ndarray

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.source.file.rsplit("/", 1)[-1].rsplit(".", 1)[0]

    @property
    def corners(self) -> np.ndarray:
        """(N,4) float64: the boxes as left, top, right, bottom, as cells are cropped and detected."""
        return np.hstack([self.boxes_N4[:, :2], self.boxes_N4[:, :2] + self.boxes_N4[:, 2:]])

    @property
    def abnormal(self) -> np.ndarray:
        """(N,) bool: which nuclei a detector is to find."""
        return self.classes_N > NILM

    @property
    def negative(self) -> bool:
        """Whether nuclei are annotated and none is abnormal, so that whatever is found is a false alarm. In any other
        field a place without annotation is unknown."""
        return len(self.classes_N) > 0 and bool((self.classes_N <= NILM).all())

    def read(self) -> np.ndarray:
        """(H,W,3) uint8 RGB, decoded anew. Raises DataMissing."""
        return read_field(self.source)

    def at(self, points_K2: np.ndarray) -> np.ndarray:
        """(K,) int64: the annotated nucleus that each point (x, y in pixels) hits: the nearest whose middle is within
        half its box's side, in x and in y; -1 where there is none."""
        middles_N2 = self.boxes_N4[:, :2] + self.boxes_N4[:, 2:] / 2
        away_KN2 = np.abs(np.asarray(points_K2, np.float64).reshape(-1, 1, 2) - middles_N2[None])
        far_KN = np.where((away_KN2 <= self.boxes_N4[:, 2:] / 2).all(2), np.square(away_KN2).sum(2), np.inf)
        if not len(middles_N2):
            return np.full(len(far_KN), -1, np.int64)
        return np.where(np.isfinite(far_KN.min(1)), far_KN.argmin(1), -1)

    def classes_at(self, points_K2: np.ndarray) -> np.ndarray:
        """(K,) int64: the class of what lies at each point: of the nucleus that it hits; else NILM in a negative field
        and UNKNOWN in any other."""
        hit_K = self.at(points_K2)
        rest = NILM if self.negative else UNKNOWN
        return np.where(hit_K >= 0, np.append(self.classes_N, rest)[hit_K], rest)


def load(part: str | None = None) -> tuple[Field, ...]:
    """The fields of a part (train, validation, test), or all; by file name.

    The split is that of the set's cells wherever they are used, by block of images, near-duplicates joined, so that an
    encoder that learned from its train part stays clean. Raises TaskInvalid for another part, LeakageRefused where a
    field that shares its block with images of other holders is measured on, DataMissing.
    """
    if part is not None and part not in PARTS:
        raise TaskInvalid(f"There is no part {part!r} of a split. Name one of: {', '.join(PARTS)}.")
    cells, risky = load_set("cric_cells"), _risky()
    split = held_out(cells, allow_missing=True)
    rows: dict[Source, list[int]] = {}
    for index, source in enumerate(cells.sources):
        rows.setdefault(source, []).append(index)
    fields = []
    for source, inside in rows.items():
        side = str(split.parts_N[inside[0]])
        if side != "train" and source.file.rsplit("/", 1)[-1] in risky:
            raise LeakageRefused(f"The field {source.file} shares its block with others' images: it may only train.")
        if part in (None, side):
            fields.append(Field(source, str(split.groups_N[inside[0]]), side, MPP, *_nuclei(cells, inside)))
    return tuple(fields)


def _nuclei(cells: Dataset, inside: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The boxes and classes of a field's cells. The set's strata are the first classes, in their order."""
    boxes_N4 = np.array(cells.boxes_N4[inside], np.float64)
    boxes_N4[:, 2:] -= boxes_N4[:, :2]
    return boxes_N4, np.array([NAMES.index(cells.strata[cells.strata_N[index]]) for index in inside], np.int64)


def _risky() -> frozenset[str]:
    rows = read_table(data_root(), "cytology_cric/fields.csv")
    return frozenset(row["file_name"] for row in rows if row["leak_risk"] != "0")


def counts(fields: Iterable[Field]) -> np.ndarray:
    """(3,7) int64: annotated nuclei by part and class."""
    found = np.zeros((len(PARTS), len(CLASSES)), np.int64)
    for field in fields:
        known = field.classes_N[field.classes_N >= NILM]
        found[PARTS.index(field.part)] += np.bincount(known, minlength=len(CLASSES))
    return found


def supported(counts_PC: np.ndarray) -> tuple[bool, ...]:
    """By class, whether it may be answered alone: enough cells to learn from, and some of other groups in each part to
    choose and to measure on."""
    return tuple(((counts_PC[0] >= LEAST_TRAINING_CELLS) & (counts_PC > 0).all(0)).tolist())


def seen(fields: Iterable[Field]) -> Seen:
    """What a run that learns from these fields of CRIC says in its manifest. Raises DataMissing."""
    cells, files = load_set("cric_cells"), {field.source.file for field in fields}
    return Seen.of(cells, np.flatnonzero([source.file in files for source in cells.sources]))


def read_field(source: Source) -> np.ndarray:
    """(H,W,3) uint8 RGB of a JPEG, BMP or PNG of any licence tier. Raises DataMissing."""
    data = read_source(data_root(), source, "ABC")
    if source.file.lower().endswith((".jpg", ".jpeg")):
        try:
            return decode_jpeg(data)
        except ValueError:
            image = None
    else:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise DataMissing(f"{source.file} cannot be decoded: it is damaged. Fetch the data again.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
