"""All encodings of a report, written into one folder under the names that callers outside rely on.

`result_objects` decides which there are, `Report.objects` names them, `write_all` writes what is named.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydicom import Dataset

from gateway.domain.report import ObjectKind, Picture, Report, ResultObject, SlideReading
from gateway.operations.errors import StateError
from gateway.reports import dicom_file
from gateway.reports.ann import write_annotations
from gateway.reports.cells_ann import has_cells, write_cell_annotations
from gateway.reports.derived import EVIDENCE
from gateway.reports.encapsulated import write_encapsulated_pdf
from gateway.reports.geojson import restate_geojson, write_geojson
from gateway.reports.html import to_html
from gateway.reports.json_report import to_json
from gateway.reports.key_objects import write_key_objects
from gateway.reports.masks_ann import has_outlines, write_mask_annotations
from gateway.reports.masks_seg import found_in, write_mask_seg
from gateway.reports.parametric_map import write_parametric_map
from gateway.reports.pdf import to_pdf
from gateway.reports.regions import has_regions
from gateway.reports.seg import SegmentationType, write_seg
from gateway.reports.spatial import SlideSource
from gateway.reports.sr import to_sr

DICOM, PDF, GEOJSON = "application/dicom", "application/pdf", "application/geo+json"
_SEGMENTS, _PROBABILITIES = "segments", "probabilities"


def result_objects(slides: Sequence[SlideReading], sources: Sequence[SlideSource]) -> tuple[ResultObject, ...]:
    """The files of the report of these slides, in the order in which an archive gets them: what others refer to first.

    A slide on whose source nothing is placed gets none of its own; a study without a slide that is drawn on gets the
    structured report alone.
    """
    return tuple(_result_objects(slides, sources))


def _result_objects(slides: Sequence[SlideReading], sources: Sequence[SlideSource]) -> Iterator[ResultObject]:
    drawn = {source.series: source for source in sources if source.placed is not None or source.masks}
    for number, slide in enumerate(slides, 1):
        if slide.series in drawn:
            yield from _drawn(number, slide, drawn[slide.series])
    yield ResultObject(kind=ObjectKind.PAGE, file="report.html", media_type="text/html")
    yield ResultObject(kind=ObjectKind.DOCUMENT, file="report.pdf", media_type=PDF)
    studies = dict.fromkeys(slide.study for slide in slides if slide.read)
    stems = {study: "report" if number == 1 else f"report-{number}" for number, study in enumerate(studies, 1)}
    for study, stem in stems.items():
        yield ResultObject(kind=ObjectKind.STRUCTURED_REPORT, file=f"{stem}.sr.dcm", media_type=DICOM, study=study)
    drawn_in = {slide.study for slide in slides if slide.series in drawn}
    for kind, extension in ((ObjectKind.DOCUMENT, "pdf"), (ObjectKind.KEY_OBJECTS, "ko")):
        for study, stem in stems.items():
            if study in drawn_in:
                yield ResultObject(kind=kind, file=f"{stem}.{extension}.dcm", media_type=DICOM, study=study)


def _drawn(number: int, slide: SlideReading, source: SlideSource) -> Iterator[ResultObject]:
    """What is drawn on one slide. Of a slide that was classified as a whole no place has a class: no segments; nor of
    one on which cells were found. What was found by words has a segmentation a resolution, and its probabilities; none
    where nothing was found."""
    files = _drawn_by_tiles
    if source.masks:
        files = _drawn_by_words
    elif source.cells is not None:
        files = _drawn_by_cells
    for kind, file in files(number, source):
        media_type = GEOJSON if kind is ObjectKind.GEOJSON else DICOM
        yield ResultObject(kind=kind, file=file, media_type=media_type, study=slide.study, series=slide.series)


def _drawn_by_tiles(number: int, source: SlideSource) -> Iterator[tuple[ObjectKind, str]]:
    stem = f"tissue-{number}" if source.tiles is not None else f"slide-{number}"
    if source.tiles is not None:
        yield ObjectKind.SEGMENTATION, f"{stem}.seg.dcm"
    yield ObjectKind.PARAMETRIC_MAP, f"{stem}.pm.dcm"
    if has_regions(source):
        yield ObjectKind.ANNOTATIONS, f"{stem}.ann.dcm"
    yield ObjectKind.GEOJSON, f"{stem}.geojson"


def _drawn_by_words(number: int, source: SlideSource) -> Iterator[tuple[ObjectKind, str]]:
    for grid, masks in enumerate(source.masks, 1):
        if found_in(masks):
            yield ObjectKind.SEGMENTATION, _seg_file(_SEGMENTS, number, grid)
            yield ObjectKind.SEGMENTATION, _seg_file(_PROBABILITIES, number, grid)
    if has_outlines(source):
        yield ObjectKind.ANNOTATIONS, f"{_SEGMENTS}-{number}.ann.dcm"
    yield ObjectKind.GEOJSON, f"{_SEGMENTS}-{number}.geojson"


def _drawn_by_cells(number: int, source: SlideSource) -> Iterator[tuple[ObjectKind, str]]:
    stem = f"cells-{number}"
    if source.cells is not None and len(source.cells.rows_M):
        yield ObjectKind.PARAMETRIC_MAP, f"{stem}.pm.dcm"
    if has_cells(source):
        yield ObjectKind.ANNOTATIONS, f"{stem}.ann.dcm"
    yield ObjectKind.GEOJSON, f"{stem}.geojson"


def segment_files(number: int, source: SlideSource) -> dict[int, str]:
    """The file that each prompt's segment on slide `number` (from 1) lies in, by `Segmented.index`; none of those for
    which none is written."""
    return {
        index: _seg_file(_SEGMENTS, number, grid)
        for grid, masks in enumerate(source.masks, 1)
        if found_in(masks)
        for index in masks.indices
    }


def _seg_file(stem: str, number: int, grid: int) -> str:
    return f"{stem}-{number}-{grid}.seg.dcm"


def _grid_of(file: str) -> int:
    """Which of a slide's mask maps a segmentation of prompts is of, from 1."""
    return int(file.split(".", 1)[0].rsplit("-", 1)[1])


def _write_segmentation(
    path: Path, report: Report, source: SlideSource, segmentation_type: Literal["BINARY", "LABELMAP"]
) -> None:
    if not source.masks:
        write_seg(path, report, source, segmentation_type=segmentation_type)
        return
    form: SegmentationType = "FRACTIONAL" if path.name.startswith(_PROBABILITIES) else segmentation_type
    write_mask_seg(path, report, source, source.masks[_grid_of(path.name) - 1], segmentation_type=form)


def _write_annotations(path: Path, report: Report, source: SlideSource) -> None:
    if source.masks:
        write_mask_annotations(path, report, source)
    elif source.cells is not None:
        write_cell_annotations(path, report, source)
    else:
        write_annotations(path, report, source)


def write_all(
    folder: Path,
    report: Report,
    sources: Sequence[SlideSource],
    pictures: Mapping[str, bytes],
    *,
    segmentation_type: Literal["BINARY", "LABELMAP"],
) -> None:
    """Write report.json, the pictures, and each file that `report.objects` names, to `folder`.

    `sources`: one for each slide that was read. `pictures`: the bytes behind `report.pictures`, by file name. Raises
    OSError, and PathserveError where a slide that was read has no source.
    """
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    by_series: dict[str | None, SlideSource] = {source.series: source for source in sources}
    for item in report.objects:
        path = folder / item.file
        match item.kind:
            case ObjectKind.SEGMENTATION:
                _write_segmentation(path, report, by_series[item.series], segmentation_type)
            case ObjectKind.PARAMETRIC_MAP:
                write_parametric_map(path, report, by_series[item.series])
            case ObjectKind.ANNOTATIONS:
                _write_annotations(path, report, by_series[item.series])
            case ObjectKind.GEOJSON:
                write_geojson(path, report, by_series[item.series])
    _write_documents(folder, report, [source.image for source in sources], pictures, [folder])


def write_revision(folder: Path, report: Report, images: Sequence[Dataset], earlier: Sequence[Path]) -> None:
    """Write what a later revision of a report says anew, to `folder`: report.json, the pages, the documents.

    What is drawn on the slides, and the pictures, stay as they are in the folders of the earlier revisions (`earlier`,
    newest first). `images`: the headers of the levels that were read, one a slide (`headers.kept`). Raises OSError,
    and StateError where a file of the earlier revisions is not what was written.
    """
    pictures = {picture.file: _unchanged(picture, earlier) for picture in report.pictures}
    for item in report.objects:
        if item.kind is ObjectKind.GEOJSON:
            restate_geojson(_found(item.file, earlier), folder / item.file, report, item)
    _write_documents(folder, report, images, pictures, [folder, *earlier])


def _write_documents(
    folder: Path,
    report: Report,
    images: Sequence[Dataset],
    pictures: Mapping[str, bytes],
    folders: Sequence[Path],
) -> None:
    """What tells the report itself; `folders` hold what the key object selection lists beside it."""
    (folder / "report.json").write_bytes(to_json(report))
    document = to_pdf(report, pictures)
    for item in report.objects:
        path = folder / item.file
        of_study = [image for image in images if image.StudyInstanceUID == item.study]
        match item.kind:
            case ObjectKind.PAGE:
                path.write_bytes(to_html(report, pictures))
            case ObjectKind.STRUCTURED_REPORT:
                dicom_file.save(to_sr(report, of_study, _segmentations(report, item.study, folders)), path)
            case ObjectKind.DOCUMENT if item.media_type == PDF:
                path.write_bytes(document)
            case ObjectKind.DOCUMENT:
                write_encapsulated_pdf(path, report, of_study[0], document)
            case ObjectKind.KEY_OBJECTS:
                others = [other for other in report.objects if (other.study, other.media_type) == (item.study, DICOM)]
                files = [_found(other.file, folders) for other in others if other != item]
                write_key_objects(path, report, of_study, files)


def _segmentations(report: Report, study: str | None, folders: Sequence[Path]) -> dict[str, Dataset]:
    """What the structured report of a study says of the segmentations of prompts, by file."""
    files = {each.seg for result in report.segmentations for each in result.segments if each.seg is not None}
    return {
        item.file: dicom_file.read(_found(item.file, folders), EVIDENCE)
        for item in report.objects
        if item.study == study and item.file in files
    }


def _unchanged(picture: Picture, folders: Sequence[Path]) -> bytes:
    """The bytes behind a picture: a person answers for what the report shows."""
    data = _found(picture.file, folders).read_bytes()
    if hashlib.sha256(data).hexdigest() != picture.sha256:
        raise StateError("A picture of the report is not the one that was made. Restore it, or order anew.")
    return data


def _found(name: str, folders: Sequence[Path]) -> Path:
    """The file in the first folder that has it; in the last, where none has."""
    return next((folder / name for folder in folders if (folder / name).exists()), folders[-1] / name)
