"""All encodings of a report, written into one folder under the names that callers outside rely on.

`result_objects` decides which there are, `Report.objects` names them, `write_all` writes what is named.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from gateway.domain.report import ObjectKind, Report, ResultObject, SlideReading
from gateway.reports.ann import write_annotations
from gateway.reports.geojson import to_geojson
from gateway.reports.html import to_html
from gateway.reports.json_report import to_json
from gateway.reports.parametric_map import write_parametric_map
from gateway.reports.regions import has_regions
from gateway.reports.seg import write_seg
from gateway.reports.spatial import SlideSource
from gateway.reports.sr import sr_bytes, to_sr

DICOM = "application/dicom"


def result_objects(slides: Sequence[SlideReading], sources: Sequence[SlideSource]) -> tuple[ResultObject, ...]:
    """The files of the report of these slides, in the order in which an archive gets them: what others refer to first.

    A slide whose source has no tiles gets none of its own; a study without a slide that has tiles gets the structured
    report alone.
    """
    return tuple(_result_objects(slides, sources))


def _result_objects(slides: Sequence[SlideReading], sources: Sequence[SlideSource]) -> Iterator[ResultObject]:
    by_series = {source.series: source for source in sources}
    for number, slide in enumerate(slides, 1):
        source = by_series.get(slide.series)
        if source is not None and source.tiles is not None:
            yield from _drawn(f"tissue-{number}", slide, source)
    studies = dict.fromkeys(slide.study for slide in slides if slide.read)
    yield ResultObject(kind=ObjectKind.PAGE, file="report.html", media_type="text/html")
    stems = {study: "report" if number == 1 else f"report-{number}" for number, study in enumerate(studies, 1)}
    for study, stem in stems.items():
        yield ResultObject(kind=ObjectKind.STRUCTURED_REPORT, file=f"{stem}.sr.dcm", media_type=DICOM, study=study)


def _drawn(stem: str, slide: SlideReading, source: SlideSource) -> Iterator[ResultObject]:
    """What is drawn on one slide."""
    kinds = [
        (ObjectKind.SEGMENTATION, "seg.dcm", DICOM),
        (ObjectKind.PARAMETRIC_MAP, "pm.dcm", DICOM),
        *([(ObjectKind.ANNOTATIONS, "ann.dcm", DICOM)] if has_regions(source) else []),
        (ObjectKind.GEOJSON, "geojson", "application/geo+json"),
    ]
    for kind, extension, media_type in kinds:
        yield ResultObject(
            kind=kind, file=f"{stem}.{extension}", media_type=media_type, study=slide.study, series=slide.series
        )


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
    (folder / "report.json").write_bytes(to_json(report))
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    by_series: dict[str | None, SlideSource] = {source.series: source for source in sources}
    for item in report.objects:
        path = folder / item.file
        images = [source.image for source in sources if source.image.StudyInstanceUID == item.study]
        match item.kind:
            case ObjectKind.SEGMENTATION:
                write_seg(path, report, by_series[item.series], segmentation_type=segmentation_type)
            case ObjectKind.PARAMETRIC_MAP:
                write_parametric_map(path, report, by_series[item.series])
            case ObjectKind.ANNOTATIONS:
                write_annotations(path, report, by_series[item.series])
            case ObjectKind.GEOJSON:
                path.write_bytes(to_geojson(report, by_series[item.series]))
            case ObjectKind.PAGE:
                path.write_bytes(to_html(report, pictures))
            case ObjectKind.STRUCTURED_REPORT:
                path.write_bytes(sr_bytes(to_sr(report, images)))
