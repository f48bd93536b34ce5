"""The right patient: what the order says is compared with what each slide's header says (DESIGN.md law 9)."""

from collections.abc import Iterator, Sequence

from gateway.domain.order import Order, Specimen
from gateway.domain.slide import SlideHeader
from gateway.operations.errors import IdentityMismatch


def check_identity(order: Order, specimen: Specimen, header: SlideHeader) -> None:
    """Raise IdentityMismatch where order and header both give an identifier and the two differ.

    The sentence names the attribute, never its values: it may reach people who must not see either patient.
    """
    for attribute, ordered, found in _pairs(order, specimen, header):
        if ordered and found and ordered.strip() != found.strip():
            raise IdentityMismatch(
                f"The {attribute} of the order and of the slide {header.series_uid} differ. Nothing was read. "
                "Check the order and the slide's label, correct the wrong one and order again."
            )


def check_one_patient(headers: Sequence[SlideHeader]) -> None:
    """Raise IdentityMismatch where two slides of a case name different patients (id, or issuer where both give one)."""
    for attribute in ("patient_id", "patient_id_issuer"):
        values = {value.strip() for header in headers if (value := getattr(header, attribute))}
        if len(values) > 1:
            raise IdentityMismatch(
                f"The slides of this case differ in their {attribute.replace('_', ' ')}: they belong to different "
                "patients. Nothing was read. Order each patient's slides apart."
            )


def _pairs(order: Order, specimen: Specimen, header: SlideHeader) -> Iterator[tuple[str, str | None, str | None]]:
    yield "patient id", order.patient.id, header.patient_id
    yield "issuer of the patient id", order.patient.issuer, header.patient_id_issuer
    yield "accession number", order.accession, header.accession
    yield "container identifier", specimen.container, header.container_id
