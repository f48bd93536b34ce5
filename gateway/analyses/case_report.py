"""The report of a case, from what its protocol says of each slide that could be read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from gateway import __version__
from gateway.analyses.fetched import Fetched
from gateway.analyses.slide_half import SlideOutcome
from gateway.domain.model import ModelCard, ModelVersion
from gateway.domain.order import Order
from gateway.domain.report import (
    UNSIGNED,
    Finding,
    FindingKind,
    Picture,
    Report,
    ReportState,
    SegmentationResult,
    SlideReading,
    Software,
)
from gateway.domain.tables import finding_code
from gateway.domain.uids import derive_uid
from gateway.reports import SCHEMA_VERSION, SlideSource, picture, result_objects, segment_files
from gateway.slides import Slide

STATEMENT = f"Research use, not a medical device. {UNSIGNED}"
_EXTENSIONS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg"}


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """A report with what its encoders need beside it: the slides that were read, and the pictures by file name."""

    report: Report
    sources: Sequence[SlideSource]
    pictures: dict[str, bytes]


def build_report(
    analysis_id: str,
    order: Order,
    slides: Sequence[Fetched],
    read: Callable[[Fetched], tuple[SlideOutcome, SlideSource]],
    *,
    card: ModelCard,
    models: Callable[[], tuple[ModelVersion, ...]],
    issued: datetime,
) -> Built:
    """The one report. `read` gives the outcome of a slide that was fetched; `card` speaks for the protocol; `models`
    says last of all which models it was."""
    outcomes: list[SlideOutcome] = []
    sources: list[SlideSource] = []
    segmentations: list[SegmentationResult] = []
    readings: list[SlideReading] = []
    findings: list[Finding] = [*_changed_settings(order)]
    pictures: list[Picture] = []
    data: dict[str, bytes] = {}
    for number, fetched in enumerate(slides, 1):
        if fetched.reason is not None:
            readings.append(_unread(order, fetched))
            findings.append(_not_read(fetched))
            continue
        outcome, source = read(fetched)
        outcomes.append(outcome)
        sources.append(source)
        readings.append(outcome.reading)
        findings += outcome.findings
        if outcome.segmentation is not None:
            segmentations.append(_with_files(outcome.segmentation, segment_files(number, source)))
        for role, encoded in outcome.pictures.items():
            file = picture_file(role, number, encoded)
            pictures.append(picture(role, file, encoded, outcome.reading.series))
            data[file] = encoded
    exploratory = any(outcome.exploratory for outcome in outcomes)
    report = Report(
        schema_version=SCHEMA_VERSION,
        analysis_id=analysis_id,
        protocol=order.protocol,
        state=ReportState.PRELIMINARY,
        issued=issued,
        statement=STATEMENT if exploratory else f"{STATEMENT} {card.intended_use.statement}",
        exploratory=exploratory,
        software=Software(
            name="pathserve",
            manufacturer="pathserve",
            version=__version__,
            device_uid=derive_uid("pathserve", f"device/{__version__}"),
        ),
        models=models(),
        order=order,
        slides=tuple(readings),
        findings=tuple(findings),
        tissue=tuple(outcome.tissue for outcome in outcomes if outcome.tissue is not None),
        slide_classes=tuple(outcome.classes for outcome in outcomes if outcome.classes is not None),
        segmentations=tuple(segmentations),
        screenings=tuple(outcome.screening for outcome in outcomes if outcome.screening is not None),
        pictures=tuple(pictures),
        objects=result_objects(readings, sources),
    )
    return Built(report, sources, data)


def source_of(slide: Slide, outcome: SlideOutcome) -> SlideSource:
    """A slide that was read, as the encoders draw on it."""
    return SlideSource(
        series=outcome.reading.series,
        levels=tuple(slide.source_dataset(index) for index in range(len(slide.levels))),
        instances=tuple(level.sop_instance_uids for level in slide.levels),
        read=outcome.level,
        tiles=outcome.tiles,
        attention=outcome.attention,
        masks=outcome.masks,
        cells=outcome.cells,
    )


def _with_files(result: SegmentationResult, files: Mapping[int, str]) -> SegmentationResult:
    """The result, each prompt with the file that its segment lies in."""
    return replace(result, segments=tuple(replace(each, seg=files.get(each.index)) for each in result.segments))


def picture_file(role: str, slide_number: int, encoded: bytes) -> str:
    """The name of a picture's file: its role, the slide's number (from 1), and what it is encoded in. A role that ends
    in a number keeps it at the end: `top-tile-2` of slide 1 is `top-tile-1-2.jpg`."""
    extension = next(extension for magic, extension in _EXTENSIONS.items() if encoded.startswith(magic))
    name, dash, rank = role.rpartition("-")
    stem = f"{name}-{slide_number}-{rank}" if dash and rank.isdecimal() else f"{role}-{slide_number}"
    return f"{stem}.{extension}"


def _unread(order: Order, fetched: Fetched) -> SlideReading:
    return SlideReading(
        study=fetched.study,
        series=fetched.series,
        read=False,
        reason=f"{fetched.reason}: {fetched.detail}",
        container=order.specimens[fetched.specimen].container,
    )


def _not_read(fetched: Fetched) -> Finding:
    return Finding(
        kind=FindingKind.NOT_READ,
        code=finding_code("slide-not-read"),
        text=f"A slide of this order was not read: {fetched.detail}",
        series=fetched.series or None,
    )


def _changed_settings(order: Order) -> list[Finding]:
    return [
        Finding(
            kind=FindingKind.SETTING,
            code=finding_code("setting-changed"),
            text=f"The setting {name} was changed to {value} for this order.",
        )
        for name, value in order.settings
    ]
