"""An order names a case: one patient, one or more specimens, each with one or more slides."""

from dataclasses import dataclass
from enum import StrEnum

from gateway.domain.codes import Code


class Priority(StrEnum):
    """Priority of an order, in the LIS's words; STAT is served first."""

    STAT = "STAT"
    URGENT = "URGENT"
    ROUTINE = "ROUTINE"


@dataclass(frozen=True, slots=True)
class Patient:
    """The patient's identifier exactly as it was received (PatientID, IssuerOfPatientID)."""

    id: str | None = None
    issuer: str | None = None


@dataclass(frozen=True, slots=True)
class SlideReference:
    """One physical slide: its study and, where the study holds several slides, its series (empty = all of it)."""

    study: str
    series: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Specimen:
    """One specimen container with what the LIS knows of it. Unknown type, site or stain stay None: never guessed."""

    slides: tuple[SlideReference, ...]
    container: str | None = None
    type: Code | None = None
    site: Code | None = None
    stain: str | None = None


@dataclass(frozen=True, slots=True)
class PointUm:
    """A point in micrometres from the slide image's top left corner."""

    x_um: float
    y_um: float


@dataclass(frozen=True, slots=True)
class RegionUm:
    """A box in micrometres from the slide image's top left corner; where it has a polygon, the part of the box inside
    that. The polygon is closed (the first corner is not repeated) and counts by the even-odd rule; empty = the box."""

    x_um: float
    y_um: float
    width_um: float
    height_um: float
    polygon_um: tuple[PointUm, ...] = ()


@dataclass(frozen=True, slots=True)
class Order:
    """What the LIS asked for. `settings`: protocol settings changed for this order only (and named in the report)."""

    protocol: str
    specimens: tuple[Specimen, ...]
    priority: Priority = Priority.ROUTINE
    accession: str | None = None
    patient: Patient = Patient()
    prompts: tuple[str, ...] = ()
    region: RegionUm | None = None
    settings: tuple[tuple[str, str], ...] = ()
