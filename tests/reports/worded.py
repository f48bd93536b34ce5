"""A slide that was segmented by words: masks in memory over the committed slide's real headers, and their report."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import cv2
import numpy as np

from gateway.domain.codes import Code
from gateway.domain.order import Order, SlideReference, Specimen
from gateway.domain.report import Finding, FindingKind, ObjectFigures, Report, SegmentationResult, Segmented
from gateway.domain.tables import finding_code
from gateway.reports import MaskMap, Outlines, SlideSource, result_objects, segment_files
from tests.reports.conftest import COMMITTED, reading_of, report_of, single, volume_headers

STRUCTURE = Code("91723000", "SCT", "Anatomical structure")
NUCLEUS = Code("84640000", "SCT", "Cell nucleus")
LYMPHOCYTE = Code("56972008", "SCT", "Lymphocyte")
GLAND = Code("134358001", "SCT", "Gland")
TISSUE_CATEGORY = Code("85756007", "SCT", "Tissue")


UNANSWERED = "spindle nuclei in colon"


@dataclass(frozen=True, eq=False)
class DrawnMasks:
    """Whole masks in memory: `fractions_by_index` (rows, columns) uint8 each; `labels_by_index` numbers the objects of
    those that have any."""

    series: str
    level: int
    pixel_px: float
    tile_px: int
    fractions_by_index: Mapping[int, np.ndarray]
    labels_by_index: Mapping[int, np.ndarray] = field(default_factory=dict)
    threshold: int = 128

    @property
    def rows(self) -> int:
        return int(next(iter(self.fractions_by_index.values())).shape[0])

    @property
    def columns(self) -> int:
        return int(next(iter(self.fractions_by_index.values())).shape[1])

    @property
    def indices(self) -> tuple[int, ...]:
        return tuple(self.fractions_by_index)

    def mask(self, index: int) -> np.ndarray:
        return self.fractions_by_index[index] >= self.threshold

    def _tiles(self, index: int) -> Iterator[tuple[int, int, np.ndarray]]:
        for row in range(-(-self.rows // self.tile_px)):
            for column in range(-(-self.columns // self.tile_px)):
                down, across = row * self.tile_px, column * self.tile_px
                tile = self.fractions_by_index[index][down : down + self.tile_px, across : across + self.tile_px]
                if (tile >= self.threshold).any():
                    yield row, column, tile

    def occupied(self, index: int) -> np.ndarray:
        places = [(row, column) for row, column, _ in self._tiles(index)]
        return np.array(places, np.int32).reshape(-1, 2)

    def fractions(self, index: int) -> Iterator[np.ndarray]:
        return (tile for _, _, tile in self._tiles(index))

    def outlines(self, index: int) -> Iterator[Outlines]:
        """Two objects a batch, so that batches are joined; holes follow the outer ring of their object."""
        labels = self.labels_by_index.get(index)
        numbers = range(1, 1 + int(labels.max()) if labels is not None else 1)
        for start in range(0, len(numbers), 2):
            rings: list[np.ndarray] = []
            of: list[int] = []
            for at, number in enumerate(numbers[start : start + 2]):
                found, _ = cv2.findContours(
                    (labels == number).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
                )
                rings += [ring[:, 0].astype(np.float32) + 0.5 for ring in found]
                of += [at] * len(found)
            sizes = np.array([len(ring) for ring in rings])
            chosen = [labels == number for number in numbers[start : start + 2]]
            yield Outlines(
                points_P2=np.concatenate(rings),
                first_G=np.cumsum(sizes) - sizes,
                object_G=np.array(of, np.int32),
                area_um2_N=np.array([mask.sum() * 0.249 for mask in chosen], np.float32),
                irregularity_N=np.linspace(0.1, 0.2, len(chosen), dtype=np.float32),
                probability_N=np.array(
                    [self.fractions_by_index[index][mask].mean() / 255 for mask in chosen], np.float32
                ),
            )


def _disks(shape: tuple[int, int], centres: list[tuple[int, int]], radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Fractions and numbers of disks, each surer towards its middle."""
    fractions, labels = np.zeros(shape, np.uint8), np.zeros(shape, np.int32)
    for number, centre in enumerate(centres, 1):
        for part, value in ((radius + 3, 90), (radius, 180), (radius // 2, 240)):
            cv2.circle(fractions, centre, part, value, -1)
        cv2.circle(labels, centre, radius, number, -1)
    labels[fractions < 128] = 0
    return fractions, labels


@cache
def worded(
    *, prompts: tuple[str, str, str, str] = ("all nuclei", "lymphocytes", "neutrophils in colon", "glands"),
    exploratory: bool = False, overlap: bool = True, found: bool = True,
) -> tuple[Report, SlideSource]:  # fmt: skip
    """Four prompts on the committed slide: nuclei and lymphocytes, which overlap where `overlap` says so, neutrophils,
    which are absent, and glands at another resolution, one with a hole. Nothing at all where not `found`. A fifth
    could not be answered."""
    levels = volume_headers(COMMITTED)
    image = levels[0]
    rows, columns = int(image.TotalPixelMatrixRows), int(image.TotalPixelMatrixColumns)
    fine, coarse = (rows, columns), (-(-rows // 2), -(-columns // 2))
    nuclei, nucleus_labels = _disks(fine, [(100, 100), (512, 500), (1500, 1000), (columns - 8, 2000)], 14)
    lymphocytes, lymphocyte_labels = _disks(fine, [(1500 if overlap else 1700, 1004), (700, 2100)], 12)
    glands = np.zeros(coarse, np.uint8)
    cv2.rectangle(glands, (300, 200), (699, 399), 200, -1)
    cv2.rectangle(glands, (400, 250), (499, 299), 20, -1)
    cv2.rectangle(glands, (10, 900), (59, 949), 150, -1)
    none = np.zeros(fine, np.uint8)
    keep = 1 if found else 0
    series = str(image.SeriesInstanceUID)
    maps = (
        DrawnMasks(
            series, 0, 1.0, 512, {0: nuclei * keep, 1: lymphocytes * keep, 2: none},
            {0: nucleus_labels, 1: lymphocyte_labels} if found else {},
        ),
        DrawnMasks(series, 0, 2.0, 512, {3: glands * keep}),
    )  # fmt: skip
    slide = reading_of(image)
    result = SegmentationResult(
        series=series,
        exploratory=exploratory,
        segments=tuple(_segmented(maps, slide.level_mpp or 0, index, prompt) for index, prompt in enumerate(prompts)),
        area_mm2=1.1,
    )
    finding = Finding(
        kind=FindingKind.INTENDED_USE,
        code=finding_code("not-validated"),
        text="“cell-level neutrophil in colon pathology” is not validated for this tissue.",
        series=series,
    )
    source = SlideSource(
        series=series, levels=tuple(levels), instances=single(levels), read=0, tiles=None, masks=typed(maps)
    )
    files = segment_files(1, source)
    result = replace(result, segments=tuple(replace(each, seg=files.get(each.index)) for each in result.segments))
    report = replace(
        report_of([slide], [], [finding]),
        schema_version="1.8",
        protocol="segmentation",
        exploratory=exploratory,
        order=Order(
            protocol="segmentation",
            specimens=(Specimen(slides=(SlideReference(slide.study, (series,)),)),),
            prompts=(*prompts, UNANSWERED),
        ),
        segmentations=(result,),
    )
    return replace(report, objects=result_objects(report.slides, [source])), source


def typed(maps: tuple[MaskMap, ...]) -> tuple[MaskMap, ...]:
    """The maps as the encoders know them."""
    return maps


_ASKED = (
    ("nuclei-level nucleus in colon pathology", STRUCTURE, NUCLEUS, "#2f6fd6", True),
    ("nuclei-level lymphocyte in colon pathology", STRUCTURE, LYMPHOCYTE, "#e0a100", True),
    ("cell-level neutrophil in colon pathology", STRUCTURE, Code("30630007", "SCT", "Neutrophil"), "#b0418e", False),
    ("tissue-level gland in colon pathology", TISSUE_CATEGORY, GLAND, "#2e8b57", True),
)


def _segmented(maps: tuple[DrawnMasks, ...], level_mpp: float, index: int, prompt: str) -> Segmented:
    triple, category, code, color, supported = _ASKED[index]
    masks = next(masks for masks in maps if index in masks.indices)
    mask, mpp = masks.mask(index), level_mpp * masks.pixel_px
    present = bool(mask.any())
    labels = masks.labels_by_index.get(index)
    objects = None
    if labels is not None and present:
        areas = np.bincount(labels.ravel())[1:] * mpp**2
        objects = ObjectFigures(
            count=len(areas),
            density_per_mm2=len(areas) / 1.1,
            mean_area_um2=float(areas.mean()),
            area_p10_um2=float(np.percentile(areas, 10)),
            area_median_um2=float(np.percentile(areas, 50)),
            area_p90_um2=float(np.percentile(areas, 90)),
            irregularity=0.125,
        )
    area_mm2 = float(mask.sum()) * (mpp / 1000) ** 2
    return Segmented(
        index=index,
        prompt=prompt,
        triple=triple,
        category=category,
        code=code,
        color=color,
        supported=supported,
        present=present,
        presence=0.93 if present else 0.04,
        min_presence=0.5 if index < 3 else 0.83,
        mpp=mpp,
        area_mm2=area_mm2,
        area_fraction=area_mm2 / 1.1,
        mean_probability=float(masks.fractions_by_index[index][mask].mean() / 255) if present else None,
        objects=objects,
        val_dice=0.74,
    )
