"""Is the slide of the cervix, and how was it prepared? What order and header declare, never what a picture looks like.

Looked at are the order's type and site of the specimen, and in the header the primary anatomic structure and the types
of the specimens and of what they were taken from (DICOM PS3.3 C.7.6.22), and how these were collected and prepared
(PS3.16 TID 8001). One code of the cervix suffices where no other contradicts it: another organ or fluid, the way it was
taken, or that it was cut from a block of tissue.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gateway.domain.codes import Code
from gateway.domain.order import Specimen
from gateway.domain.report import Finding, FindingKind
from gateway.domain.slide import SlideHeader
from gateway.domain.tables import finding_code, specimen_table


@dataclass(frozen=True, slots=True)
class Declared:
    """Whether a specimen of the cervix is declared and nothing contradicts that, and what is to be said of it."""

    cervical: bool
    findings: tuple[Finding, ...]


def declared(specimen: Specimen, header: SlideHeader, local_codes: Mapping[str, str]) -> Declared:
    """What order and header say. `local_codes`: SNOMED CT codes by a laboratory's own ones, written `SCHEME|CODE`."""
    kinds = [code for code in (specimen.type, specimen.site, *header.kinds) if code is not None]
    cervical = specimen_table("cervical")
    known = [(each, understood) for each in kinds if (understood := _snomed(each, local_codes)) is not None]
    prepared = [
        (each, understood) for each in header.preparation if (understood := _snomed(each, local_codes)) is not None
    ]
    stated = {understood for _, understood in (*known, *prepared)}
    neutral, no_smear = specimen_table("contradict-nothing"), specimen_table("against-a-smear")
    against = [each for each, understood in known if understood not in cervical and understood not in neutral]
    against += [each for each, understood in prepared if understood in no_smear]
    unknown = [each for each in kinds if _snomed(each, local_codes) is None]
    is_cervical = not against and not stated.isdisjoint(cervical)
    texts = [] if is_cervical else [("specimen-not-cervical", _not_cervical(against, unknown))]
    if is_cervical and unknown:
        texts.append(
            ("specimen-not-understood", f"What else the specimen is said to be was not read. {_mapped(unknown)}")
        )
    texts += [("preparation-not-validated", text) for text in _preparation(stated)]
    findings = tuple(
        Finding(kind=FindingKind.INTENDED_USE, code=finding_code(key), text=text, series=header.series_uid)
        for key, text in texts
    )
    return Declared(is_cervical, findings)


def _snomed(code: Code, local_codes: Mapping[str, str]) -> str | None:
    """The SNOMED CT code that a code is, or stands for; None for one that nobody has mapped."""
    if code.scheme == "SCT":
        return code.code
    if code.scheme == "SRT":
        return specimen_table("retired").get(code.code, code.code)
    return local_codes.get(f"{code.scheme}|{code.code}")


def _not_cervical(against: list[Code], unknown: list[Code]) -> str:
    if against:
        names = " and ".join(dict.fromkeys(repr(code.display) for code in against))
        said = f"Order or image header state {names}, which is no smear of the cervix."
    else:
        said = "Neither the order nor the image header states a specimen of the cervix."
    if unknown:
        said += f" {_mapped(unknown)}"
    return f"{said} No category is given. State the specimen in the order."


def _mapped(unknown: list[Code]) -> str:
    codes = ", ".join(dict.fromkeys(f"{code.scheme}|{code.code}" for code in unknown))
    return f"Not understood: {codes}; map it in the setting specimen_codes."


def _preparation(stated: set[str]) -> Iterator[str]:
    if not stated.isdisjoint(specimen_table("liquid-based")):
        yield (
            "The slide is a liquid-based preparation. The model was measured on conventional smears: how often it is "
            "right on this one is not known."
        )
    if not stated.isdisjoint(specimen_table("of-tissue")):
        yield "The image header speaks of tissue in the slide's preparation; the model is for smears."
