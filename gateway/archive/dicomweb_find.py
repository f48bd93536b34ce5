"""QIDO-RS (PS3.18 10.6): which slide series there are, by study, accession number, or container identifier.

What a PACS matches, and what it returns, differs: keys are sent where it may help, and every match is judged here.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from gateway.archive.dicomweb_http import Session, all_pages, text, values
from gateway.archive.protocol import SeriesEntry, SlideQuery
from gateway.domain.uids import is_uid
from gateway.operations.errors import ArchiveRefused, IdentityMismatch, InvalidInput, SlideNotInArchive

_SOP_INSTANCE, _MODALITY, _STUDY, _SERIES = "00080018", "00080060", "0020000D", "0020000E"
_SERIES_INSTANCES, _ACCESSION, _CONTAINER = "00201209", "00080050", "00400512"
_PATIENT, _ISSUER = "00100020", "00100021"

_Match = dict[str, Any]


def find_series(session: Session, study: str, series: Sequence[str] = ()) -> tuple[SeriesEntry, ...]:
    """`Archive.find_series` of checked UIDs."""
    found = dict(all_pages(session, f"/studies/{study}/series", _SERIES))
    if not found:
        raise SlideNotInArchive(f"The study {study} is not in the PACS: send it there and order again.")
    slides = _slides(study, found)
    if missing := [uid for uid in series if uid not in slides]:
        raise SlideNotInArchive(f"The study holds no slide series {missing[0]}: check the order.")
    if not slides:
        raise SlideNotInArchive(f"The study {study} holds no slide (modality SM): check the order.")
    return tuple(slides[uid] for uid in (dict.fromkeys(series) or sorted(slides)))


def search(session: Session, query: SlideQuery) -> tuple[SeriesEntry, ...]:
    """`Archive.search`."""
    found: list[SeriesEntry] = []
    patients: set[tuple[str, str]] = set()
    for number, (study, match) in enumerate(_studies(session, query)):
        slides = _slides(study, dict(all_pages(session, f"/studies/{study}/series", _SERIES))).values()
        fitting = [entry for entry in slides if _fits(session, query, entry, match)]
        if fitting:
            patients.add((_text(match, _PATIENT), _text(match, _ISSUER)))
        found += fitting
        if max(number, len(found)) > session.limits.series:
            raise _too_many()
    if not found:
        raise SlideNotInArchive(
            "The PACS holds no slide (modality SM) of that study, series, accession number and container: send it "
            "there, or correct what is looked for."
        )
    if len(patients) > 1:
        raise IdentityMismatch("The slides found are those of several patients: name the study as well.")
    return tuple(sorted(found, key=lambda entry: (entry.study, entry.series)))


def _fits(session: Session, query: SlideQuery, entry: SeriesEntry, study: _Match) -> bool:
    """Whether a slide series is looked for. `study` is what the PACS says of its study."""
    if query.series not in (None, entry.series):
        return False
    # A study's attributes may be those of any object in it: what counts is the slide's own.
    if query.accession not in (None, _text(study, _ACCESSION)) and query.accession != _said(session, entry, _ACCESSION):
        return False
    return query.container is None or query.container == _said(session, entry, _CONTAINER)


def _too_many() -> InvalidInput:
    return InvalidInput("The PACS finds more slides than a case has: name the study or the accession number as well.")


def _studies(session: Session, query: SlideQuery) -> Iterator[tuple[str, _Match]]:
    """The studies that may hold what is looked for, each with its attributes at study level."""
    keys = (("StudyInstanceUID", query.study), ("AccessionNumber", query.accession))
    if given := [(name, value) for name, value in keys if value is not None]:
        for study, match in all_pages(session, "/studies", _STUDY, given):
            if query.study in (None, study):
                yield study, match
        return
    for below in _studies_below(session, query):
        for study, match in all_pages(session, "/studies", _STUDY, [("StudyInstanceUID", below)]):
            if study == below:
                yield study, match


def _studies_below(session: Session, query: SlideQuery) -> Iterator[str]:
    """The studies of series or instances that match, where nothing of the study itself is known."""
    if query.series is not None:
        pages = all_pages(session, "/series", _SERIES, [("SeriesInstanceUID", query.series)])
    else:
        # Asked for by name: to bring it, a PACS may have to open every file.
        keys = [("ContainerIdentifier", query.container or ""), ("includefield", _CONTAINER)]
        pages = all_pages(session, "/instances", _SOP_INSTANCE, keys)
    seen: set[str] = set()
    for _, match in islice(pages, session.limits.instances):
        study = _text(match, _STUDY)
        if not is_uid(study):
            raise ArchiveRefused("The PACS lists an object whose UID is not valid: correct it in the PACS.")
        carried = _text(match, _CONTAINER)
        if study in seen or (carried and query.container not in (None, carried)):
            continue
        seen.add(study)
        if len(seen) > session.limits.series:
            raise _too_many()
        yield study


def _slides(study: str, found: dict[str, _Match]) -> dict[str, SeriesEntry]:
    # Modality is filtered here: as a search key it is ignored by some servers and matches nothing on others.
    slides = {uid: match for uid, match in found.items() if text(match, _MODALITY) == "SM"}
    return {uid: SeriesEntry(study, uid, _count(match)) for uid, match in slides.items()}


def _said(session: Session, entry: SeriesEntry, tag: str) -> str | None:
    """What a series says of an attribute that all its instances share: by a search, or in one instance's header."""
    path = f"/studies/{entry.study}/series/{entry.series}/instances"
    found = session.listing("find", path, [("includefield", tag), ("limit", "1")]) or []
    sop = _text(found[0], _SOP_INSTANCE) if found else ""
    if not is_uid(sop):
        return None
    if carried := _text(found[0], tag):
        return carried
    header = session.listing("metadata", f"{path}/{sop}/metadata") or []
    return _text(header[0], tag) if header else None


def _text(match: _Match, tag: str) -> str:
    return (text(match, tag) or "").strip()


def _count(series: _Match) -> int | None:
    found = values(series, _SERIES_INSTANCES)
    return found[0] if found and isinstance(found[0], int) else None
