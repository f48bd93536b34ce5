"""Is this slide one that the model was made for? What order and header say is compared with the model's card."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gateway.domain.codes import Code
from gateway.domain.model import ModelCard
from gateway.domain.order import Specimen
from gateway.domain.report import Finding, FindingKind
from gateway.domain.slide import SlideHeader
from gateway.domain.tables import finding_code, stain_name

NOTHING_DRAWN = "The slide gets no segmentation, heat map or annotations."


@dataclass(frozen=True, slots=True)
class Use:
    """What is known of the slide, and the findings that put it outside the intended use (none = inside).

    `wrong_stain`: the stain is known not to be one of the model's, or order and header differ in it.
    """

    stain: str | None
    site: Code | None
    findings: tuple[Finding, ...]
    wrong_stain: bool

    @property
    def exploratory(self) -> bool:
        return bool(self.findings)


def compare(specimen: Specimen, header: SlideHeader, card: ModelCard) -> Use:
    """Compare organ, specimen type (where the card names any) and stain of order and header with the card. Unknown
    counts as outside, and so does a conflict."""
    of_stain = compare_stain(specimen, header, card)
    outside = [*_of_organ(specimen, header, card), *_of_type(specimen, header, card)]
    return replace(of_stain, findings=(*(_finding(header, *each) for each in outside), *of_stain.findings))


def compare_stain(specimen: Specimen, header: SlideHeader, card: ModelCard) -> Use:
    """The stain alone, for a protocol that looks at what the specimen is by rules of its own."""
    header_stain = stain_name(header.stains)
    stain = specimen.stain or header_stain
    stains = ", ".join(card.intended_use.stains)
    found: list[tuple[str, str]] = []
    if stain is None:
        found.append(
            ("stain-unknown", f"Neither the order nor the image header states the stain; the model is for {stains}.")
        )
    elif specimen.stain is not None and header_stain is not None and specimen.stain != header_stain:
        found.append(
            (
                "stain-conflict",
                f"The order states {specimen.stain}, the image header {header_stain} as the stain. {NOTHING_DRAWN}",
            )
        )
    elif stain not in card.intended_use.stains:
        found.append(("stain-outside", f"The stain is {stain}; the model is for {stains}. {NOTHING_DRAWN}"))
    return Use(
        stain=stain,
        site=specimen.site or header.site,
        findings=tuple(_finding(header, *each) for each in found),
        wrong_stain=bool(found) and stain is not None,
    )


def _finding(header: SlideHeader, key: str, text: str) -> Finding:
    return Finding(kind=FindingKind.INTENDED_USE, code=finding_code(key), text=text, series=header.series_uid)


def _of_organ(specimen: Specimen, header: SlideHeader, card: ModelCard) -> Iterator[tuple[str, str]]:
    site = specimen.site or header.site
    organs = ", ".join(organ.display.lower() for organ in card.intended_use.organs)
    if site is None:
        yield "organ-unknown", f"Neither the order nor the image header states the organ; the model is for {organs}."
    elif specimen.site is not None and header.site is not None and not specimen.site.same_as(header.site):
        yield (
            "organ-conflict",
            f"The order states {specimen.site.display!r}, the image header {header.site.display!r} as the organ.",
        )
    elif not any(site.same_as(organ) for organ in card.intended_use.organs):
        yield "organ-outside", f"The organ is {site.display!r}; the model is for {organs}."


def _of_type(specimen: Specimen, header: SlideHeader, card: ModelCard) -> Iterator[tuple[str, str]]:
    types = ", ".join(kind.display.lower() for kind in card.intended_use.specimen_types)
    kind = specimen.type or header.specimen_type
    if not types:
        return  # the model takes specimens of every type
    if kind is None:
        yield (
            "specimen-unknown",
            f"Neither the order nor the image header states the type of specimen; the model is for {types}.",
        )
    elif specimen.type is not None and header.specimen_type is not None and not kind.same_as(header.specimen_type):
        yield (
            "specimen-conflict",
            f"The order states {specimen.type.display!r}, the image header {header.specimen_type.display!r} as the "
            "type of specimen.",
        )
    elif not any(kind.same_as(taken) for taken in card.intended_use.specimen_types):
        yield "specimen-outside", f"The specimen is {kind.display!r}; the model is for {types}."
