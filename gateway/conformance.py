"""`python -m gateway.conformance` prints docs/dicom-conformance.md from the code.

What the code knows is asked of it: an example of every object is written about a phantom and read back, and tables and
limits are those of the modules that use them. Only what no code says (PS3.2's roles, and what is left out) is text.
"""

import importlib
import json
import pkgutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

import numpy as np
import pydicom
from pydicom.charset import python_encoding
from pydicom.uid import UID, AllTransferSyntaxes, VLWholeSlideMicroscopyImageStorage

import gateway.reports
from gateway import __version__
from gateway.archive.breaker import FAILURES, PROBE_S, WINDOW_S
from gateway.archive.dicomweb_wire import Limits
from gateway.domain.codes import PRIVATE_SCHEME, Code
from gateway.domain.model import ModelVersion
from gateway.domain.order import Order, SlideReference, Specimen
from gateway.domain.report import FindingKind, Report, ReportState, SlideReading, Software, TissueClass, TissueResult
from gateway.domain.slide import TileGrid
from gateway.operations.settings import Settings
from gateway.reports import SlideSource, TileMap
from gateway.reports.derived import AS_RECEIVED, SPECIMEN, TYPE_2, Kind
from gateway.reports.encode import result_objects, write_all
from gateway.reports.wording import kind_title
from gateway.slides import Slide
from gateway.slides.decode import SUPPORTED
from gateway.slides.phantom import write_phantom

_FIELD_PX = 128
_MODULES = {
    "Patient": ("C.7.1.1", "PatientID"),
    "General Study": ("C.7.2.1", "StudyInstanceUID"),
    "General Series": ("C.7.3.1", "SeriesInstanceUID"),
    "SR Document Series": ("C.17.1", "ReferencedPerformedProcedureStepSequence"),
    "Frame of Reference": ("C.7.4.1", "FrameOfReferenceUID"),
    "General Equipment, Enhanced General Equipment": ("C.7.5", "DeviceSerialNumber"),
    "Specimen": ("C.7.6.22", "SpecimenDescriptionSequence"),
    "Image Pixel": ("C.7.6.3", "Rows"),
    "Multi-frame Functional Groups": ("C.7.6.16", "SharedFunctionalGroupsSequence"),
    "Multi-frame Dimension": ("C.7.6.17", "DimensionOrganizationSequence"),
    "Whole Slide Microscopy coordinates": ("C.8.12.4", "TotalPixelMatrixOriginSequence"),
    "Segmentation Image": ("C.8.20", "SegmentSequence"),
    "Parametric Map Image": ("C.8.32", "PixelPresentation"),
    "Microscopy Bulk Simple Annotations": ("C.37.1", "AnnotationGroupSequence"),
    "Common Instance Reference": ("C.12.2", "ReferencedSeriesSequence"),
    "SR Document General": ("C.17.2", "CompletionFlag"),
    "Current Requested Procedure Evidence": ("C.17.2, C.17.6", "CurrentRequestedProcedureEvidenceSequence"),
    "SR Document Content": ("C.17.3", "ContentSequence"),
    "Encapsulated Document": ("C.24.2", "EncapsulatedDocument"),
    "SOP Common": ("C.12.1", "SOPInstanceUID"),
}
"""Modules of PS3.3 and, for each, an attribute that an object has only where we write the module."""

_NAMES = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation Storage",
}
"""Names of PS3.6 that are newer than the dictionary of pydicom."""

_SERVICES = """\
pathserve is a client of one archive. It offers no DICOM service to others, and speaks no DIMSE.

| service (PS3.18) | resources asked for | parameters and media types |
|---|---|---|
| QIDO-RS, user agent | `/studies`, `/studies/{study}/series`, `/studies/{study}/series/{series}/instances`, \
`/series`, `/instances` | `StudyInstanceUID`, `SeriesInstanceUID`, `SOPInstanceUID`, `AccessionNumber`, \
`ContainerIdentifier`, `includefield` (repeated), `limit`, `offset`; `application/dicom+json` |
| WADO-RS, user agent | `/studies/{study}/series/{series}/metadata` | `application/dicom+json` |
| WADO-RS, user agent | `/studies/{study}/series/{series}/instances/{instance}` | `multipart/related; \
type="application/dicom"; transfer-syntax=*`, else the single part `application/dicom; transfer-syntax=*` |
| WADO-RS, user agent | `…/instances/{instance}/frames/{list}` | `multipart/related`, in the stored transfer \
syntax only |
| STOW-RS, user agent | `POST /studies`, one instance a request, key objects last; then read back and compared | \
`multipart/related; type="application/dicom"` |
| Media Storage (PS3.10), file-set reader | a folder, or the files that its DICOMDIR names | – |
| Media Storage (PS3.10), file creator | the folder archive's `results/STUDY/INSTANCE.dcm`; no DICOMDIR is written | – |

Requests carry `Accept-Encoding: identity`. Pixels are taken in the transfer syntax in which they are stored, or not at
all. Redirects and URLs within an answer (Retrieve URL, BulkDataURI) are not followed. How an archive is found, pulled
from and written to: [archive.md](archive.md)."""

_SECURITY = """\
- TLS 1.2 or newer with checked certificates; plain HTTP on the loopback address only.
- Basic authentication, a bearer token, OAuth 2.0 client credentials (RFC 6749 4.4), a client certificate.
- Audit messages (PS3.15 A.5), digital signatures and de-identification profiles: not implemented."""

_LEFT_OUT = """\
- DIMSE services (C-STORE, C-FIND, C-MOVE, C-GET, storage commitment), UPS-RS, WADO-URI, rendered resources.
- Images that are not 8-bit colour: MONOCHROME, PALETTE COLOR, 16 bits, fluorescence.
- 12-bit JPEG, video, the transfer syntaxes refused above.
- Slides without pixel spacing, with pixels that are not square, with frames off a regular grid, or whose levels do not
  show the same area: refused with a reason. What is read of a slide, and how: [slides.md](slides.md).
- Presentation states, structured display, fractional segmentations of the tissue classes."""

_FALSE_ERRORS = """\
`dciodvfy` (dicom3tools 2022-06-18) is older than parts of the standard. It says these of objects that are right:

| object | message | why it is none |
|---|---|---|
| Segmentation, Parametric Map | missing `PerFrameFunctionalGroupsSequence`, `PlanePositionSlideSequence`, \
`PlanePositionSequence`, `PlaneOrientationSequence`, `SegmentIdentificationSequence` | in TILED_FULL the place and the \
segment of a frame follow from its number (PS3.3 C.7.6.17.3) |
| Label Map Segmentation | Information Object Not found; SegmentNumber not monotonically increasing | it does not know \
the class, nor the background's number 0 (PS3.3 C.8.20.2) |
| Structured report on a label map | Shall not be present for Referenced SOP Class that is not segmentation - \
attribute ReferencedSegmentNumber | a label map is a segmentation, too (PS3.3 table 10-3) |
| Annotations | Only valid for AnnotationCoordinateType of 3D - attribute CommonZCoordinateValue | the attribute is \
absent, as it must be in 2D (PS3.3 C.37.1.2) |"""


def conformance_statement() -> str:
    """The page, in Markdown; the same at every call."""
    with tempfile.TemporaryDirectory() as work:
        binary, label_map = _examples(Path(work))
    first = next(iter(binary.values()))
    sections = [
        f"# DICOM conformance statement\n\nWritten by `make docs` from the code of pathserve {__version__}. Research "
        "use, not a medical device. Sections follow PS3.2 where it has one.",
        f"## Implementation\n\n{_implementation(binary.values())}",
        f"## Roles and services\n\n{_SERVICES}",
        f"## Objects read\n\n{_read()}",
        f"## Objects written\n\n{_written(binary, label_map)}",
        f"## Attributes copied\n\n{_copied()}",
        f"## Codes of our own\n\n{_codes()}",
        f"## Character sets\n\n{_charsets(first)}",
        f"## Security\n\n{_SECURITY}\n\nSettings: {_settings('archive')}.",
        f"## Limits\n\n{_limits()}",
        f"## Not supported\n\n{_LEFT_OUT}",
        f"## Errors that a validator says wrongly\n\n{_FALSE_ERRORS}",
    ]
    return "\n\n".join(sections) + "\n"


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    names = tuple(head)
    lines = [names, ("---",) * len(names), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _named(uid: str) -> str:
    return f"{_NAMES.get(uid) or UID(uid).name} (`{uid}`)"


def _implementation(examples: Iterable[pydicom.Dataset]) -> str:
    examples = tuple(examples)
    example = examples[0]
    metas = {f"`{meta.ImplementationClassUID}` {meta.ImplementationVersionName}" for meta in _metas(examples)}
    rows = (
        ("Implementation Class UID and Version Name", "the writing library's: " + ", ".join(sorted(metas))),
        ("Manufacturer, Manufacturer's Model Name", f"{example.Manufacturer}, {example.ManufacturerModelName}"),
        ("Software Versions", example.SoftwareVersions),
        ("Device Serial Number", "the UID of the software version (one that is derived from it)"),
        ("UIDs", "under 2.25, derived from the analysis: a repeated delivery is the same object"),
    )
    return _table(("what", "value"), rows)


def _metas(examples: Iterable[pydicom.Dataset]) -> Iterator[pydicom.Dataset]:
    return (example.file_meta for example in examples)


def _in_order(uids: Iterable[str]) -> list[str]:
    return sorted(uids, key=lambda uid: [int(number) for number in uid.split(".")])


def _read() -> str:
    unread = {str(uid) for uid in AllTransferSyntaxes} - SUPPORTED
    return (
        f"{_named(VLWholeSlideMicroscopyImageStorage)}, modality SM, VOLUME images of 8-bit colour: TILED_FULL and "
        "TILED_SPARSE, concatenations, single frames. Other objects may lie in the study; they are not read.\n\n"
        + "Transfer syntaxes read:\n\n"
        + "\n".join(f"- {_named(uid)}" for uid in _in_order(SUPPORTED))
        + f"\n\nRefused by name: {', '.join(_named(uid) for uid in _in_order(unread))}."
    )


def _written(binary: dict[Kind, pydicom.Dataset], label_map: pydicom.Dataset) -> str:
    examples = [*binary.items(), (Kind.SEG, label_map)]
    rows = (
        (
            f"{kind.name}: {_named(example.SOPClassUID)}",
            example.Modality,
            _named(example.file_meta.TransferSyntaxUID),
            _template(example),
            example.SeriesNumber,
            "what was done" if kind is Kind.SR else f"what was done: {kind.value.noun}",
        )
        for kind, example in examples
    )
    of_modules = [
        (f"{name} ({section})", ", ".join(dict.fromkeys(kind.name for kind, one in binary.items() if attribute in one)))
        for name, (section, attribute) in _MODULES.items()
    ]
    settings = (
        f"`PATHSERVE_SEGMENTATION_TYPE` chooses between {' and '.join(_segmentation_types())}. Objects of several "
        "slides or studies lie in a series each. As the software writes them all are UNVERIFIED and preliminary. Where "
        "a person signs or amends, SR, PDF and KO are written anew as other objects, in series of their own, numbered "
        "10 higher for each revision: VERIFIED and FINAL, the person in Verifying Observer Sequence, the "
        "document before it in Predecessor Documents Sequence; what is drawn on the slides stays. What lies outside "
        "the intended use of the model is marked exploratory in Series Description and content. What is found by words "
        "is written as SEG in TILED_SPARSE, a segment a prompt: one as `BINARY`, or as `LABELMAP` where that is chosen "
        "and no segments overlap, and one as `FRACTIONAL` (PROBABILITY, JPEG-LS Lossless); bits beyond 4 GiB as "
        "`FRACTIONAL` with OCCUPANCY."
    )
    return (
        _table(("SOP class", "modality", "transfer syntax", "template", "series number", "series description"), rows)
        + f"\n\n{settings}\n\n"
        + _table(("module (PS3.3)", "written in"), of_modules)
        + "\n\nWhat each is for, and which viewers show it: [report.md](report.md), [objects.md](objects.md)."
    )


def _template(example: pydicom.Dataset) -> str:
    templates = example.get("ContentTemplateSequence")
    if templates:
        return f"TID {templates[0].TemplateIdentifier}"
    return "–"


def _segmentation_types() -> tuple[str, ...]:
    annotation = Settings.model_fields["segmentation_type"].annotation
    return tuple(f"`{value}`" for value in getattr(annotation, "__args__", ()))


def _copied() -> str:
    as_received = ", ".join(f"{name}{' (empty where absent)' if name in TYPE_2 else ''}" for name in AS_RECEIVED)
    return (
        f"Into every object, as received from the image: {as_received}.\n\nInto image objects: {', '.join(SPECIMEN)}, "
        "the frame of reference, orientation and origin of the level. The scanner stands in Contributing Equipment "
        "Sequence. Texts are written as `ISO_IR 192`, whatever the character set of the image."
    )


def _codes() -> str:
    codes = {code.code: code.display for code in _private_codes()}
    return (
        f"Coding scheme designator `{PRIVATE_SCHEME}`, named in Coding Scheme Identification Sequence of every "
        "object that uses it. A code is never given another meaning. The classes of a model, and the neutral names "
        "that they have outside its intended use, are in its card ([models.md](models.md)).\n\n"
        + _table(("code", "meaning"), [(f"`{code}`", meaning) for code, meaning in sorted(codes.items())])
    )


def _private_codes() -> Iterator[Code]:
    for module in pkgutil.iter_modules(gateway.reports.__path__):
        for value in vars(importlib.import_module(f"gateway.reports.{module.name}")).values():
            if isinstance(value, Code) and value.scheme == PRIVATE_SCHEME:
                yield value
    for kind in FindingKind:
        yield Code(kind.value, PRIVATE_SCHEME, kind_title(kind))
    findings = json.loads(resources.files("gateway.domain.tables").joinpath("findings.json").read_text("utf-8"))
    for code, meaning in findings["codes"].items():
        yield Code(code, PRIVATE_SCHEME, meaning)


def _charsets(example: pydicom.Dataset) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(python_encoding) if name.startswith(("ISO", "GB")))
    return f"Read: {names}, with code extensions. Written: `{example.SpecificCharacterSet}`."


def _settings(prefix: str) -> str:
    return ", ".join(
        f"`PATHSERVE_{name.upper()}`"
        for name in Settings.model_fields
        if name == prefix or name.startswith(f"{prefix}_")
    )


def _limits() -> str:
    rows = [(f"`{limit.name}`", f"{limit.default:,}") for limit in fields(Limits)]
    cache = Settings.model_fields["cache_bytes"].default
    return (
        "Of a conversation with a PACS, in seconds, bytes and counts:\n\n"
        + _table(("limit", "value"), rows)
        + f"\n\nAfter {FAILURES} failures in {WINDOW_S:g} s a PACS is left alone, and asked again once in {PROBE_S:g} "
        f"s. The frame cache holds {cache:,} bytes (`PATHSERVE_CACHE_BYTES`)."
    )


def _examples(work: Path) -> tuple[dict[Kind, pydicom.Dataset], pydicom.Dataset]:
    """One object of each kind about a phantom, and the segmentation as a label map; headers only."""
    truth = write_phantom(work / "slide", width_px=1024, height_px=768, levels=2)
    with Slide.open([path for path in truth.files if path.name.startswith("level")]) as slide:
        level, header = slide.levels[0], slide.header
        levels = tuple(slide.source_dataset(one.index) for one in slide.levels)
        instances = tuple(one.sop_instance_uids for one in slide.levels)
    grid = TileGrid(
        level=0, mpp=level.mpp, tile_px=_FIELD_PX, field_px=_FIELD_PX, columns=1024 // _FIELD_PX, rows=768 // _FIELD_PX
    )
    columns_N, rows_N = (axis.ravel().astype(np.int32) for axis in np.meshgrid(range(grid.columns), range(grid.rows)))
    tiles = len(rows_N)
    code = Code("pattern-1", PRIVATE_SCHEME, "Tissue pattern 1")
    probabilities_NC = np.full((tiles, 1), 0.9, np.float32)
    tile_map = TileMap(
        series=header.series_uid,
        rows_N=rows_N,
        columns_N=columns_N,
        classes_N=np.zeros(tiles, np.int32),
        probabilities_NC=probabilities_NC,
        tissue_N=np.ones(tiles, np.float32),
    )
    area_mm2 = tiles * grid.tile_area_mm2
    tissue = TissueResult(
        series=header.series_uid,
        exploratory=True,
        classes=(
            TissueClass(
                index=0, code=code, color="#c0392b", tiles=tiles, area_mm2=area_mm2, share=1.0, mean_probability=0.9
            ),
        ),
        uncertain_tiles=0,
        uncertain_area_mm2=0.0,
        uncertain_share=0.0,
        tiles=tiles,
        area_mm2=area_mm2,
        operating_point="default",
        min_probability=0.6,
    )
    reading = SlideReading(
        study=header.study_uid,
        series=header.series_uid,
        read=True,
        header=header,
        container=header.container_id,
        grid=grid,
        level_mpp=level.mpp,
        level_width_px=level.width_px,
        level_height_px=level.height_px,
        sop_instance_uids=level.sop_instance_uids,
        tissue_area_mm2=area_mm2,
        tiles_read=tiles,
    )
    source = SlideSource(series=header.series_uid, levels=levels, instances=instances, read=0, tiles=tile_map)
    report = replace(_report(reading, tissue), objects=result_objects((reading,), (source,)))
    for segmentation_type in ("BINARY", "LABELMAP"):
        (work / segmentation_type).mkdir()
        write_all(work / segmentation_type, report, [source], {}, segmentation_type=segmentation_type)
    found = {kind: pydicom.dcmread(path) for kind in Kind for path in (work / "BINARY").glob(f"*.{kind.extension}.dcm")}
    [label_map] = (work / "LABELMAP").glob("*.seg.dcm")
    return found, pydicom.dcmread(label_map, stop_before_pixels=True)


def _report(reading: SlideReading, tissue: TissueResult) -> Report:
    specimen = Specimen(slides=(SlideReference(reading.study, (reading.series,)),))
    model = ModelVersion(
        name="example",
        version="1",
        kind="ensemble",
        target="onnx",
        precision="fp32",
        engine_sha256="0" * 64,
        weights_sha256="0" * 64,
        recipe="example.toml",
        recipe_sha256="0" * 64,
        manifest_sha256="0" * 64,
    )
    return Report(
        schema_version="1.0",
        analysis_id="example",
        protocol="tissue-classification",
        state=ReportState.PRELIMINARY,
        issued=datetime(2026, 1, 1, tzinfo=UTC),
        statement="An example.",
        exploratory=True,
        software=Software(name="pathserve", manufacturer="pathserve", version=__version__, device_uid="2.25.1"),
        models=(model,),
        order=Order(protocol="tissue-classification", specimens=(specimen,)),
        slides=(reading,),
        findings=(),
        tissue=(tissue,),
    )


if __name__ == "__main__":
    sys.stdout.write(conformance_statement())
