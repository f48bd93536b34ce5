"""`pathserve site …`: what was fitted for which site, and a person's decisions about it."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from gateway.analyses.command_ledger import command_ledger
from gateway.analyses.ledger import Ledger
from gateway.analyses.pins import serving
from gateway.analyses.sites import FitRecord, SiteStore, Version
from gateway.domain.bethesda import ABNORMAL
from gateway.inference import ModelRepository
from gateway.inference.names import folder_of
from gateway.operations.audit import Action, AuditEvent, EventType
from gateway.operations.columns import print_columns
from gateway.operations.errors import InvalidInput, NotFound, PathserveError
from gateway.operations.operator import operator
from gateway.operations.settings import Settings
from gateway.slides.site_state import SiteState, SiteStateInvalid, Source

MODEL = "smartccs_slide"
"""The model whose inputs a state is."""
_NAME = 64
"""As long as a DICOM person name may be (PS3.5 6.2)."""


def list_sites(*, as_json: bool) -> int:
    """Print every version of every site. Raises StateError."""
    with opened() as desk:
        source = desk.source()
        rows = [desk.row(site, number, source) for site in desk.store.sites() for number in desk.store.numbers(site)]
    if as_json:
        print(json.dumps({"items": rows}, indent=2))
        return 0
    columns = ("site", "version", "state", "verdict", "model", "slides", "cells", "fitted", "signed_by")
    heads = ("SITE", "VERSION", "STATE", "VERDICT", "MODEL", "SLIDES", "CELLS", "FITTED", "SIGNED BY")
    print_columns([heads, *([str("-" if row[name] is None else row[name]) for name in columns] for row in rows)])
    return 0


def show(site: str, number: int | None) -> int:
    """Print one version of a site (the newest). Raises NotFound, SiteStateInvalid, StateError."""
    with opened() as desk:
        numbers = desk.store.numbers(site)
        version = desk.store.version(site, number if number is not None else max(numbers, default=1))
        print_columns(described(version, desk.standing(version), desk.source()))
    return 0


def sign(site: str, number: int, by: str) -> int:
    """Let a version be used, and say what that means. Raises InvalidInput, NotFound, Conflict, SiteStateInvalid,
    StateError, DiskFull."""
    person = person_named(by)
    with opened() as desk:
        told = desk.teller("site-signed", by=person)
        desk.store.sign(site, number, person, operator().subject, now(), told)
        version, source = desk.store.version(site, number), desk.source()
        print(f"{site} version {number} is signed by {person}. {_meaning(version.state)}")
        if source is not None and version.state.source_sha256 != source.digest:
            print(f"It was fitted to another {MODEL} than the one that serves, and waits until that one serves again.")
    return 0


def retire(site: str, number: int, by: str) -> int:
    """Use a version no more; its files stay. Raises InvalidInput, NotFound, Conflict, SiteStateInvalid, StateError,
    DiskFull."""
    person = person_named(by)
    with opened() as desk:
        told = desk.teller("site-retired", by=person)
        desk.store.retire(site, number, person, operator().subject, now(), told)
        left = [each.state.version for each in desk.store.versions(site) if each.usable]
        print(
            f"{site} version {number} is retired. "
            + (f"Version {left[-1]} is the newest signed one." if left else "The site has no signed version now.")
            + " Analyses that began with it end with it; a retry does not."
        )
    return 0


class Desk:
    """The sites and the ledger of a state folder."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self.settings = settings
        self.store = SiteStore(settings.state)
        self.ledger = ledger

    def teller(self, subtype: str, **more: Any) -> Callable[[SiteState], None]:
        """What writes into the audit trail what we do with a state."""

        def tell(state: SiteState) -> None:
            by = operator()
            detail = {"state_sha256": state.digest, "verdict": state.verdict, **more}
            event = AuditEvent(
                type=EventType.APPLICATION_ACTIVITY,
                subtype=subtype,
                action=Action.CREATE if subtype == "site-fitted" else Action.UPDATE,
                entity_kind="site",
                entity=f"{state.site} {state.version}",
                detail=detail,
            )
            self.ledger.audit(event.by(by))

        return tell

    def fitted(self, slides: int) -> Callable[[SiteState], None]:
        """What writes a fit to so many slides into the audit trail."""
        return self.teller("site-fitted", slides=slides)

    def source(self) -> Source | None:
        """What the slide model that serves now holds sites against; None where none can be read."""
        repository = ModelRepository(self.settings.model_repository)
        try:
            folder = folder_of(MODEL, serving(MODEL, self.ledger.choices.read(), repository))
            return Source.of(repository.card(folder).screening)
        except PathserveError:
            return None

    def standing(self, version: Version) -> str:
        """Whether a version is signed, retired, or waits for a signature."""
        if version.retired is not None:
            return "retired"
        return "unsigned" if version.signed is None else "signed"

    def row(self, site: str, number: int, source: Source | None) -> dict[str, Any]:
        """A line of the list; one of a damaged version says so."""
        try:
            version = self.store.version(site, number)
        except (SiteStateInvalid, NotFound):
            rest = ("verdict", "model", "slides", "cells", "fitted", "signed_by", "digest")
            return {"site": site, "version": number, "state": "damaged", **dict.fromkeys(rest)}
        signed = version.signed
        return {
            "site": site,
            "version": number,
            "state": self.standing(version),
            "verdict": version.state.verdict,
            "model": _model(version.state, source),
            "slides": version.state.slides,
            "cells": version.state.cells,
            "fitted": f"{version.fit.time:%Y-%m-%d %H:%M}",
            "signed_by": None if signed is None else signed.by,
            "digest": version.state.digest,
        }


@contextmanager
def opened() -> Iterator[Desk]:
    """The desk of this state folder."""
    with command_ledger("site") as (settings, ledger):
        yield Desk(settings, ledger)


def described(version: Version, standing: str, source: Source | None) -> list[tuple[str, str]]:
    """What a person decides by, as rows of two columns."""
    state, fit = version.state, version.fit
    left_out = f", {fit.left_out} left out" if fit.left_out else ""
    if fit.reasons:
        left_out += f" ({', '.join(f'{reason}: {count}' for reason, count in sorted(fit.reasons.items()))})"
    lines = [
        ("site", state.site),
        ("version", str(state.version)),
        ("state", standing),
        ("slides of", fit.origin.name),
        ("verdict", f"{state.verdict}. {_meaning(state)}"),
        ("mapped", _mapped(state)),
        ("distance raw", _number(state.distance_raw)),
        ("distance coloured", _number(state.distance_coloured)),
        ("gate", _number(state.gate)),
        ("slides", f"{state.slides}{left_out}"),
        ("specimen", _specimen(fit, state.slides)),
        ("stain", _stain(fit, state.slides)),
        ("cells", str(state.cells)),
        ("detected before", _detected([slide.detected for slide in fit.slides])),
        ("detected after", _detected([slide.detected_coloured for slide in fit.slides])),
        ("digest", state.digest),
        ("model", _model(state, source)),
        *((f"engine of {folder}", digest) for folder, digest in sorted(fit.models.items())),
        ("fitted", f"{fit.time:%Y-%m-%d %H:%M} UTC, {fit.user}"),
        ("rule", fit.rule),
    ]
    for what, decision in (("signed", version.signed), ("retired", version.retired)):
        if decision is not None:
            lines.append((what, f"{decision.time:%Y-%m-%d %H:%M} UTC, {decision.by} ({decision.user})"))
    return lines


def _specimen(fit: FitRecord, slides: int) -> str:
    """Who says that the slides are of the cervix."""
    notes = fit.notes
    if notes is None:
        return "not noted"
    if notes.cervical_by is None:
        return "cervix by the headers of all slides"
    rest = f"; the headers of {notes.silent} of {slides} do not state it" if notes.silent else ", as all headers state"
    return f"cervix, declared by {notes.cervical_by}{rest}"


def _stain(fit: FitRecord, slides: int) -> str:
    """Of how many slides it was measured."""
    if fit.notes is None:
        return "not noted"
    unmeasured = fit.notes.stain_unmeasured
    return f"measured on {slides - unmeasured} of {slides} slides" + (
        f"; on {unmeasured} too little is stained, and it is what was stated" if unmeasured else ""
    )


def _mapped(state: SiteState) -> str:
    if state.changes_nothing:
        return "nothing"
    return "colours and cells' features" if state.maps_features else "colours"


def _meaning(state: SiteState) -> str:
    match state.verdict:
        case "adapted" if state.maps_features:
            return "Its slides' colours and cells' features are mapped to those that the model learned from."
        case "adapted":
            return (
                "Its slides' colours are mapped to those that the model learned from. That is enough: its cells' "
                "features are not mapped."
            )
        case "like the source":
            return "Its slides are answered as the model is, to the bit."
        case "out of scope":
            return "The site lies too far from the model's source: no slide of it is called normal on its own."
        case _:
            return "Nobody fitted the site."


def _model(state: SiteState, source: Source | None) -> str:
    if source is None:
        return "unknown"
    return "serves" if state.source_sha256 == source.digest else "another"


def _detected(slides: Sequence[tuple[int, ...] | None]) -> str:
    counted = [slide for slide in slides if slide is not None]
    if not counted:
        return "not looked at: the colours were not mapped"
    totals = [sum(column) for column in zip(*counted, strict=True)]
    each = ", ".join(f"{name} {count}" for name, count in zip(ABNORMAL, totals, strict=True))
    return f"{sum(totals)} cells ({each})"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def person_named(by: str) -> str:
    """Who answers for a decision, as it was given. Raises InvalidInput."""
    person = " ".join(by.split())
    if not person or len(person) > _NAME or not person.isprintable():
        raise InvalidInput(f"--by takes the name of the person who answers for it, at most {_NAME} characters.")
    return person


def now() -> datetime:
    """UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)
