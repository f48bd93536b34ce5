"""The order as REST takes it: strict, bounded, nothing unknown; and its way into the domain.

Lengths are those of the DICOM value representations that the report will carry them in (PS3.5 6.2: SH 16, LO 64).
"""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from gateway.analyses.protocols import PROTOCOLS
from gateway.domain.codes import Code
from gateway.domain.order import Order, Patient, PointUm, Priority, RegionUm, SlideReference, Specimen
from gateway.domain.prompts import MOST_PROMPTS
from gateway.domain.uids import is_uid

# No control characters, no backslash (it separates values in DICOM), no lone surrogates; more than blanks.
_TEXT = r"^[^\x00-\x1f\x7f\\]*[^\x00-\x20\x7f\\][^\x00-\x1f\x7f\\]*$"


def _uid(text: str) -> str:
    if not is_uid(text):
        raise ValueError("must be a DICOM UID: dotted numbers, at most 64 characters")
    return text


_UID = {"pattern": r"^(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+$"}
Uid = Annotated[str, Field(json_schema_extra=_UID), StringConstraints(max_length=64), AfterValidator(_uid)]
Short = Annotated[str, StringConstraints(min_length=1, max_length=16, pattern=_TEXT)]
Long = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=_TEXT)]
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=_TEXT)]
Micrometres = Annotated[float, Field(strict=True, ge=0, le=1e7, allow_inf_nan=False)]
Size = Annotated[float, Field(strict=True, gt=0, le=1e7, allow_inf_nan=False)]

_LEAST_CORNERS = 3

EXAMPLE: dict[str, Any] = {
    "protocol": "tissue-classification",
    "priority": "ROUTINE",
    "accession": "S26-004711",
    "patient": {"id": "PID-0815", "issuer": "HOSPITAL"},
    "specimens": [
        {
            "container": "S26-004711-A-1",
            "type": {"code": "119376003", "scheme": "SCT", "display": "Tissue specimen"},
            "site": {"code": "71854001", "scheme": "SCT", "display": "Colon"},
            "stain": "HE",
            "slides": [{"study": "1.2.826.0.1.3680043.8.498.1", "series": ["1.2.826.0.1.3680043.8.498.1.1"]}],
        }
    ],
}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CodeBody(_Body):
    """A coded concept: value, DICOM coding scheme designator, meaning."""

    code: Short
    scheme: Short
    display: Long

    def domain(self) -> Code:
        return Code(self.code, self.scheme, self.display)


class PatientBody(_Body):
    """The patient's identifier exactly as the hospital writes it."""

    id: Long | None = None
    issuer: Long | None = None


class SlideBody(_Body):
    """One slide: its study, and its series where the study holds several slides."""

    study: Uid
    series: list[Uid] = Field(default_factory=list, max_length=100)


class SpecimenBody(_Body):
    """One specimen container. What is left out and not in the image header counts as unknown."""

    slides: list[SlideBody] = Field(min_length=1, max_length=100)
    container: Long | None = None
    type: CodeBody | None = None
    site: CodeBody | None = None
    stain: Long | None = None


class PointBody(_Body):
    """A point in micrometres from the slide's top left corner."""

    x_um: Micrometres
    y_um: Micrometres


def _encloses(corners: list[PointBody]) -> list[PointBody]:
    if corners and len(corners) < _LEAST_CORNERS:
        raise ValueError(f"must have {_LEAST_CORNERS} corners or more, or be left out")
    return corners


_CORNERS = {"anyOf": [{"maxItems": 0}, {"minItems": _LEAST_CORNERS}]}
Polygon = Annotated[list[PointBody], Field(max_length=1000, json_schema_extra=_CORNERS), AfterValidator(_encloses)]


class RegionBody(_Body):
    """A box in micrometres from the slide's top left corner. With a polygon (3 corners or more, closed by itself), only
    the part of the box inside it is meant; `segmentation` alone takes one."""

    x_um: Micrometres
    y_um: Micrometres
    width_um: Size
    height_um: Size
    polygon_um: Polygon = Field(default_factory=list)

    def domain(self) -> RegionUm:
        return RegionUm(
            self.x_um,
            self.y_um,
            self.width_um,
            self.height_um,
            tuple(PointUm(each.x_um, each.y_um) for each in self.polygon_um),
        )


class OrderBody(_Body):
    """An order: one case, with its specimens and their slides."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [EXAMPLE]})

    protocol: Annotated[
        str,
        Field(json_schema_extra={"enum": list(PROTOCOLS)}),
        StringConstraints(min_length=1, max_length=64, pattern=r"^[a-z0-9-]+$"),
    ]
    specimens: list[SpecimenBody] = Field(min_length=1, max_length=50)
    priority: Priority = Priority.ROUTINE
    accession: Short | None = None
    patient: PatientBody | None = None
    prompts: list[Prompt] = Field(
        default_factory=list,
        max_length=MOST_PROMPTS,
        description=" ".join(
            f"`{each.name}` takes {least} to {most}."
            for each in PROTOCOLS.values()
            for least, most in [each.prompts]
            if most
        ),
    )
    region: RegionBody | None = None

    def domain(self) -> Order:
        return Order(
            protocol=self.protocol,
            specimens=tuple(
                Specimen(
                    slides=tuple(SlideReference(slide.study, tuple(slide.series)) for slide in each.slides),
                    container=each.container,
                    type=each.type.domain() if each.type else None,
                    site=each.site.domain() if each.site else None,
                    stain=each.stain,
                )
                for each in self.specimens
            ),
            priority=self.priority,
            accession=self.accession,
            patient=Patient(self.patient.id, self.patient.issuer) if self.patient else Patient(),
            prompts=tuple(self.prompts),
            region=self.region.domain() if self.region else None,
        )
