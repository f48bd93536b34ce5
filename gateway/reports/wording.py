"""The words that every encoding shares, so that none of them says it otherwise."""

from datetime import datetime

from gateway.domain.codes import Code
from gateway.domain.explanation import ExplainedObject
from gateway.domain.report import (
    EvidenceSource,
    FindingKind,
    ObjectFigures,
    Report,
    ReportState,
    SegmentationResult,
    Segmented,
    SignedAmendment,
    SlideClassification,
    SlideReading,
)

RESEARCH_USE = "Research use only, not a medical device."
PRELIMINARY = "Preliminary and unsigned: no person has confirmed this report."
EXPLORATORY = (
    "Exploratory result. A slide lies outside what the model was measured for: "
    "what is drawn and counted shows similarity of appearance only; it names no diagnosis and supports none."
)
UNCERTAIN = "Uncertain"

THUMBNAIL = ("thumbnail", "The slide", "Thumbnail of the whole slide")
TISSUE_PICTURES = (
    THUMBNAIL,
    (
        "tissue-map",
        "Tissue map: one colour a class, grey hatching where uncertain",
        "The slide in grey with the tiles coloured by class, as listed in the table below",
    ),
)
"""The pictures of a slide: role, title, and what they show for whoever cannot see them."""
ATTENTION_PICTURES = (
    THUMBNAIL,
    (
        "attention-map",
        "Weight of each tile: pale yellow least, dark red most; it shows where the model looked, not what is there",
        "The slide in grey with the tiles coloured by their weight; the heaviest are listed in the table below",
    ),
)

SEGMENTS_CAPTION = (
    "Each prompt of the order as it was given, and what was understood by it. A prompt that the model is not validated "
    "for is answered all the same; its figures support nothing."
)
"""Over the table of prompts."""
PROMPT_HEADING = ("Prompt", "Understood as", "Measured for", "Found", "Presence")
NOT_MEASURED, NOT_VALIDATED, ABSENT, UNANSWERED = "no", "measured, not validated: ", "not found", "not answered"
SEGMENT_HEADING = ("Segment", "Area, mm²", "Share, %", "Mean probability")
OBJECT_HEADING = ("Objects", "Number", "Per mm²", "Mean area, µm²", "Median (10th to 90th), µm²", "Irregularity")
OBJECTS_CAPTION = (
    "Touching objects were told apart by a rule (watershed), so these figures are approximate. Irregularity: 0 a disk, "
    "towards 1 the more ragged; the mean over the objects, by area."
)
NOT_FOUND = "Looked for, not found."

_MOST_CHARACTERS = 64
_MOST_OF_A_NAME = 3 * _MOST_CHARACTERS + 2

_PROTOCOLS = {
    "tissue-classification": "Tissue classification",
    "slide-classification": "Slide classification",
    "segmentation": "Segmentation by words",
    "cervical-screening": "Cervical screening",
}
_SOURCES = {
    EvidenceSource.ATTENTION: "The weights are the model's own attention.",
    EvidenceSource.OCCLUSION: "The weights are how far the answer's probability falls without its part of the slide.",
}
_KINDS = {
    FindingKind.INTENDED_USE: "Intended use",
    FindingKind.QUALITY: "Quality",
    FindingKind.CONFIDENCE: "Confidence",
    FindingKind.NOT_READ: "Not read",
    FindingKind.SETTING: "Changed setting",
}


def protocol_title(report: Report) -> str:
    """The protocol's name for people."""
    return _PROTOCOLS.get(report.protocol, report.protocol.replace("-", " ").capitalize())


def document_title(report: Report) -> str:
    """The title of the document, with the words that a reader must never miss."""
    title = f"{protocol_title(report)}, research use"
    return f"{title}, exploratory" if report.exploratory else title


def mark(report: Report) -> str:
    """The state of the report in a word: Preliminary, Final, Amended."""
    return report.state.value.capitalize()


def standing(report: Report) -> str:
    """Who stands behind the report: no person yet, or who signed this revision and when."""
    signature = report.signature
    if signature is None:
        return PRELIMINARY
    by = f"signed by {signature.name} ({signature.organisation}) on {moment(signature.time)}."
    if report.state is ReportState.FINAL:
        return f"Final: {by}"
    return f"Amended: revision {report.revision}, which supersedes revision {report.supersedes}; {by}"


def remark_of_signer(report: Report) -> str | None:
    """What the person wrote who signed this revision, if anything."""
    if report.signature is None or not report.signature.comment:
        return None
    return f"{report.signature.name}: {report.signature.comment}"


def amendment_title(amended: SignedAmendment) -> str:
    """Since when an amendment stands in the report, and who made it."""
    by = amended.signature
    return f"Amended in revision {amended.revision} by {by.name} ({by.organisation}) on {moment(by.time)}"


def finding(code: Code) -> str:
    """A coded finding of a person: its meaning, then its code."""
    return f"{code.display} ({code.scheme} {code.code})"


def amendment_rows(amended: SignedAmendment) -> list[tuple[str, str]]:
    """What an amendment says, each part with its label."""
    amendment = amended.amendment
    return [
        ("Reason", amendment.reason),
        ("Correction", amendment.text),
        *(("Finding", finding(code)) for code in amendment.findings),
    ]


def moment(time: datetime) -> str:
    """A time in UTC as it is printed."""
    return f"{time:%Y-%m-%d %H:%M} UTC"


def kind_title(kind: FindingKind) -> str:
    """What a finding is about, for people."""
    return _KINDS[kind]


def slide_name(report: Report, series: str | None) -> str:
    """How a finding names its slide: "Slide 2 (container A-2)", or "Whole case"."""
    for number, slide in enumerate(report.slides, 1):
        if slide.series == series:
            return f"Slide {number} (container {cut(slide.container)})" if slide.container else f"Slide {number}"
    return "Whole case"


def unread(report: Report) -> list[tuple[SlideReading, str]]:
    """Slides that were not read, each with a reason, that no finding speaks of already."""
    told = {finding.series for finding in report.findings if finding.kind is FindingKind.NOT_READ}
    return [
        (slide, slide.reason or "no reason is known")
        for slide in report.slides
        if not slide.read and (slide.series or None) not in told
    ]


def cut(text: str, most: int = _MOST_CHARACTERS) -> str:
    """A header's value for people: what is longer than any that DICOM allows (LO, a group of PN: PS3.5 6.2) ends in …

    Headers hold longer ones, and a page that repeats one of a hundred thousand characters is no page.
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def how_seen(slide: SlideReading) -> list[tuple[str, str]]:
    """How well a slide can be seen and how it is stained: label and figure."""
    rows = []
    if slide.quality is not None:
        seen = slide.quality
        focus = f"{percent(seen.blurred_share)} % of tiles (median focus {seen.focus_median:.3f})"
        rows.append(("Out of focus", focus))
        rows.append(("Colour", f"saturation {seen.saturation:.2f}, brightness {seen.brightness:.2f}"))
        if seen.pen_area_mm2:
            rows.append(("Pen marks", f"{area(seen.pen_area_mm2)} mm²"))
    if slide.stain_figures is not None:
        stain = slide.stain_figures
        off = "" if stain.distance_deg is None else f"; {stain.distance_deg:.0f}° from the model's"
        rows.append(
            ("Stain, optical density", f"haematoxylin {stain.haematoxylin_od:.2f}, eosin {stain.eosin_od:.2f}{off}")
        )
    return rows


def answer(classes: SlideClassification) -> str:
    """What a slide as a whole is taken for, in a sentence."""
    found = classes.answered
    at = f"(operating point “{classes.operating_point}”: {probability(classes.min_probability)})"
    if found is None:
        return f"No answer: no class that the model was measured for reached the operating point {at}."
    return f"{found.code.display}: probability {probability(found.probability)} {at}."


def weights(classes: SlideClassification) -> str:
    """What the tiles' weights are, and of how many tiles."""
    even = f"{percent(1 / classes.bag, digits=2)} %"
    return (
        f"The model saw {classes.bag} of {classes.tiles} tiles; an even share is {even}. {_SOURCES[classes.evidence]}"
    )


def tile_pictures(classes: SlideClassification) -> list[tuple[str, str, str]]:
    """The pictures of the tiles that weigh most, as `TISSUE_PICTURES`."""
    shares = [percent(tile.share, digits=2) for tile in classes.top_tiles]
    return [
        (f"top-tile-{rank}", f"{rank}: {share} % of the weights", "The tile as the model saw it")
        for rank, share in enumerate(shares, 1)
    ]


def segments_caption(result: SegmentationResult) -> str:
    """What the figures of segments are shares of, and when a prompt counts as found."""
    return (
        "Share of the tissue that was read at the segment's own resolution, and objects per mm² of the same (at the "
        f"finest that was answered {area(result.area_mm2)} mm²). A prompt is found where its presence reaches its "
        "limit and the probability of a pixel one half; segments may overlap."
    )


def nothing_found(report: Report, result: SegmentationResult) -> str:
    """What stands in the place of figures where there are none."""
    unanswered = len(report.order.prompts) - len(result.segments)
    if not unanswered:
        return "Nothing was found of any prompt in the tissue that was read."
    were = "One prompt was" if unanswered == 1 else f"{unanswered} prompts were"
    return f"Nothing was found of the prompts that were answered. {were} not answered."


def prompt_rows(report: Report, result: SegmentationResult) -> list[list[str]]:
    """Each prompt of the order under PROMPT_HEADING, also those without an answer."""
    answered = {each.index: each for each in result.segments}
    return [
        _prompt_row(answered[index]) if index in answered else [prompt, "–", "–", UNANSWERED, "–"]
        for index, prompt in enumerate(report.order.prompts)
    ]


def _prompt_row(segmented: Segmented) -> list[str]:
    return [
        segmented.prompt,
        segmented.triple,
        measured_for(segmented),
        "found" if segmented.present else ABSENT,
        "{} (limit {})".format(*presence(segmented.presence, segmented.min_presence)),
    ]


def measured_for(segmented: Segmented | ExplainedObject) -> str:
    """Whether the model of masks was measured for a prompt, and how well it did."""
    if segmented.val_dice is None:
        return "yes" if segmented.supported else NOT_MEASURED
    return f"{'yes, ' if segmented.supported else NOT_VALIDATED}Dice {segmented.val_dice:.2f}"


def stressed(cell: str) -> bool:
    """Whether a cell of a table of prompts must not be overlooked."""
    return cell in (NOT_MEASURED, ABSENT, UNANSWERED) or cell.startswith(NOT_VALIDATED)


def found(result: SegmentationResult) -> list[Segmented]:
    """The segments that have figures and pictures."""
    return [each for each in result.segments if each.present]


def segment_name(segmented: Segmented | ExplainedObject) -> str:
    """What figures and pictures are of: the prompt as understood, and whether they support anything."""
    return segmented.triple if segmented.supported else f"{segmented.triple} (not validated)"


def segment_row(segmented: Segmented) -> list[str]:
    """The figures of a segment that was found, under SEGMENT_HEADING."""
    return [
        segment_name(segmented),
        area(segmented.area_mm2),
        percent(segmented.area_fraction, digits=2),
        probability(segmented.mean_probability),
    ]


def object_row(segmented: Segmented, objects: ObjectFigures) -> list[str]:
    """The figures of a segment's objects under OBJECT_HEADING."""
    name, density = segment_name(segmented), f"{objects.density_per_mm2:.1f}"
    if not objects.count:
        return [name, "0", density, "–", "–", "–"]
    return [
        name,
        str(objects.count),
        density,
        f"{objects.mean_area_um2:.1f}",
        f"{objects.area_median_um2:.1f} ({objects.area_p10_um2:.1f} to {objects.area_p90_um2:.1f})",
        f"{objects.irregularity:.3f}",
    ]


def object_rows(result: SegmentationResult) -> list[list[str]]:
    """The figures of all segments that have objects."""
    return [object_row(each, each.objects) for each in result.segments if each.objects is not None]


def segment_description(segmented: Segmented) -> str:
    """What was found of a prompt, in a sentence or two."""
    if not segmented.present:
        return NOT_FOUND
    share = percent(segmented.area_fraction, digits=2)
    extent = f"{area(segmented.area_mm2)} mm², {share} % of the tissue that was read at this resolution."
    if segmented.objects is not None:
        count = segmented.objects.count
        extent += f" About {count} objects." if count else " Regions only: none has the least size of an object."
    return extent if segmented.supported else f"{extent} Not validated for this tissue."


def segment_pictures(report: Report, result: SegmentationResult) -> list[tuple[str, str, str]]:
    """The pictures of what was found, as `TISSUE_PICTURES`: of each prompt all of it, and a place where much of it
    lies."""
    widths_px = {picture.role: picture.width_px for picture in report.pictures if picture.series == result.series}
    pictures = []
    for each in found(result):
        name, field = segment_name(each), f"segment-field-{each.index + 1}"
        wide = f", {widths_px[field] * each.mpp:.0f} µm wide" if field in widths_px else ""
        pictures += [
            (
                f"segment-{each.index + 1}",
                f"{name}: where it was found",
                "What was read in grey with the segment in colour",
            ),
            (
                field,
                f"{name}: its outlines in a field where much of it lies{wide}",
                "A field at the resolution of the mask with the segment's outline",
            ),
        ]
    return pictures


def area(value_mm2: float) -> str:
    """An area in mm² as it is printed: what is there is never 0."""
    if value_mm2 == 0 or value_mm2 >= 0.01:
        return f"{value_mm2:.2f}"
    printed = f"{value_mm2:.4f}" if value_mm2 >= 0.0001 else f"{value_mm2:.6f}"
    return printed if float(printed) else "<0.000001"


def percent(share: float, *, digits: int = 1) -> str:
    """A share (0..1) in % as it is printed: what is there is never 0."""
    printed = f"{share * 100:.{digits}f}"
    return printed if share == 0 or float(printed) else f"<{10**-digits:.{digits}f}"


def probability(value: float | None) -> str:
    """A probability as it is printed; a dash where there is none."""
    return "–" if value is None else f"{value:.2f}"


def presence(value: float, limit: float) -> tuple[str, str]:
    """A presence and its limit (0..1) as they are printed: with three decimals, or with as many more as tell them
    apart, and the limit from 0 and 1."""
    for digits in range(3, 8):
        printed, least = f"{value:.{digits}f}", f"{limit:.{digits}f}"
        if (printed != least or value == limit) and (0 < float(least) < 1 or limit in (0, 1)):
            break
    return printed, least


def patient(report: Report) -> dict[str, str | None]:
    """Who the report is about, from the header of the first slide that has one, else from the order; `cut`."""
    header = next((slide.header for slide in report.slides if slide.header), None)
    order = report.order
    given: dict[str, str | None] = {
        "name": header.patient_name if header else None,
        "id": header.patient_id if header else order.patient.id,
        "issuer": header.patient_id_issuer if header else order.patient.issuer,
        "birth_date": header.patient_birth_date if header else None,
        "sex": header.patient_sex if header else None,
        "accession": (header.accession if header else None) or order.accession,
    }
    return {
        key: value and cut(value, _MOST_OF_A_NAME if key == "name" else _MOST_CHARACTERS)
        for key, value in given.items()
    }


def person(name: str) -> str:
    """A DICOM person name (PS3.5 6.2.1) without its carets; its component groups stay apart, each `cut`."""
    return " · ".join(cut(" ".join(part for part in group.split("^") if part)) for group in name.split("=") if group)


def date(text: str) -> str:
    """A DICOM date (YYYYMMDD) with dashes; anything else as received."""
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 and text.isdecimal() else text
