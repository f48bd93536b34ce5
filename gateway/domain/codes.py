"""Coded concepts, as DICOM (PS3.3 table 8.8-1), FHIR and HL7 all write them: value, scheme, meaning."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Code:
    """One coded concept. `scheme` is a DICOM coding scheme designator (SCT, DCM, LN, UCUM, 99PATHSERVE)."""

    code: str
    scheme: str
    display: str

    def same_as(self, other: "Code | None") -> bool:
        """Equal by value and scheme; the display text is for people and does not count."""
        return other is not None and (self.code, self.scheme) == (other.code, other.scheme)


PRIVATE_SCHEME = "99PATHSERVE"
MILLIMETRE_SQUARED = Code("mm2", "UCUM", "square millimeter")
MICROMETRE_SQUARED = Code("um2", "UCUM", "square micrometer")
PERCENT = Code("%", "UCUM", "percent")
NO_UNITS = Code("1", "UCUM", "no units")
