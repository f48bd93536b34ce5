"""The right patient: what the order says is compared with what each slide's header says (DESIGN.md law 9)."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence

from gateway.archive.cache import FrameCache
from gateway.archive.protocol import Archive, SeriesEntry
from gateway.domain.identity import Difference, Problem
from gateway.domain.order import Order, Specimen
from gateway.domain.report import Report
from gateway.domain.slide import SlideHeader
from gateway.operations.errors import IdentityMismatch, PathserveError
from gateway.slides import Slide

Read = tuple[Specimen, SlideHeader]
"""A slide: the specimen of the order that it belongs to, and what its header says."""


_IDENTIFIERS = (
    ("patient id", "patient_id"),
    ("issuer of the patient id", "patient_id_issuer"),
    ("accession number", "accession"),
    ("container identifier", "container_id"),
)


class IdentityHeld(IdentityMismatch):
    """Order and slides do not agree: nothing is read, and nothing leaves, until a person releases `differences`."""

    def __init__(self, differences: tuple[Difference, ...]) -> None:
        attributes = ", ".join(dict.fromkeys(difference.attribute for difference in differences))
        super().__init__(
            f"The order and its slides do not agree ({attributes}), so the analysis is held. "
            "Check the order and the slides' labels; a person may release it with a reason."
        )
        self.differences = differences


def check_identity(order: Order, slides: Sequence[Read], released: Collection[str]) -> None:
    """Raise IdentityHeld where order and slides do not agree in something that is not among `released` (digests)."""
    if held := unreleased(order, slides, released):
        raise IdentityHeld(held)


def check_one_patient(headers: Sequence[SlideHeader]) -> None:
    """Raise IdentityMismatch where two slides of a case name different patients (id, or issuer where both give one).

    For slides that nobody ordered: there is nothing else to compare.
    """
    for difference in _between(headers):
        raise IdentityMismatch(
            f"The slides of this case differ in their {difference.attribute}: they belong to different patients. "
            "Nothing was read. Order each patient's slides apart."
        )


def unreleased(order: Order, slides: Sequence[Read], released: Collection[str]) -> tuple[Difference, ...]:
    """What does not agree, but for what a person has released; one difference a slide and attribute.

    Patient id, accession number and container identifier must be given on both sides and be the same; the issuer of
    the patient id is compared where both give one. Blanks around a value do not count (PS3.5 6.2), all else does.
    """
    found = [
        *(each for specimen, header in slides for each in _of_slide(order, specimen, header)),
        *_between([header for _, header in slides]),
    ]
    return tuple(difference for difference in found if difference.digest not in released)


def differences_now(
    report: Report,
    archive: Archive,
    cache: FrameCache,
    released: Collection[str],
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[Difference, ...]:
    """What does not agree now, by fresh headers of every slide that the report was read from; empty: it may leave.

    Raises IdentityMismatch where all agrees, or is released, and a header is another than the report was made from: its
    objects carry the old one's patient, and nobody can release that. Raises ArchiveError (a slide that is gone cannot
    be compared), SlideError, StateError, DiskFull, Cancelled.
    """
    slides: list[Read] = []
    changed: list[str] = []
    for reading in report.slides:
        if reading.read:
            entry = SeriesEntry(reading.study, reading.series)
            files = archive.fetch(entry, cache, wanted={}, cancelled=cancelled).files
            with cache.hold(files), Slide.open(files) as slide:
                slides.append((_specimen_of(report.order, reading.study, reading.series), slide.header))
                changed += _changed(reading.header, slide.header)
    held = unreleased(report.order, slides, released)
    if changed and not held:
        raise IdentityMismatch(
            f"A slide's header was changed ({', '.join(dict.fromkeys(changed))}) since the report was made from it, so "
            "the report cannot be stored with the slide any more. Order the analysis again."
        )
    return held


def _changed(before: SlideHeader | None, now: SlideHeader) -> Iterator[str]:
    """What a report's objects carry of a slide's header, and the slide says otherwise now."""
    for attribute, field in _IDENTIFIERS:
        if before is not None and _significant(getattr(before, field)) != _significant(getattr(now, field)):
            yield attribute


def _specimen_of(order: Order, study: str, series: str) -> Specimen:
    for specimen in order.specimens:
        for slide in specimen.slides:
            if slide.study == study and (not slide.series or series in slide.series):
                return specimen
    raise PathserveError("The report names a slide that is not of its order. Report this.")


def _of_slide(order: Order, specimen: Specimen, header: SlideHeader) -> Iterator[Difference]:
    for attribute, ordered, found in (
        ("patient id", order.patient.id, header.patient_id),
        ("accession number", order.accession, header.accession),
        ("container identifier", specimen.container, header.container_id),
    ):
        problem = _problem(_significant(ordered), _significant(found))
        if problem is not None:
            yield _difference(attribute, header, problem, ordered, found)
    issuers = order.patient.issuer, header.patient_id_issuer
    if all(map(_significant, issuers)) and _problem(*map(_significant, issuers)) is not None:
        yield _difference("issuer of the patient id", header, Problem.DIFFERS, *issuers)


def _between(headers: Sequence[SlideHeader]) -> Iterator[Difference]:
    """The slides that name another patient than the first one which names one."""
    for attribute, field in (("patient id", "patient_id"), ("issuer of the patient id", "patient_id_issuer")):
        named = [(header, value) for header in headers if (value := _significant(getattr(header, field)))]
        for header, value in named[1:]:
            if value != named[0][1]:
                yield _difference(f"{attribute} among the slides", header, Problem.DIFFERS, named[0][1], value)


def _problem(ordered: str, found: str) -> Problem | None:
    if ordered and found:
        return None if ordered == found else Problem.DIFFERS
    if ordered:
        return Problem.NOT_IN_SLIDE
    return Problem.NOT_IN_ORDER if found else Problem.NOT_ANYWHERE


def _significant(value: str | None) -> str:
    return (value or "").strip(" ")


def _difference(
    attribute: str, header: SlideHeader, problem: Problem, ordered: str | None, found: str | None
) -> Difference:
    said = json.dumps([attribute, header.series_uid, problem, _significant(ordered), _significant(found)])
    return Difference(attribute, header.series_uid, problem, hashlib.sha256(said.encode()).hexdigest())
