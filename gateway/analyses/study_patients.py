"""Whose a case of a study is: an accession alone joins orders, answers and reference, so its patient is compared."""

import hmac
from collections.abc import Iterable

from gateway.domain.order import Patient
from gateway.domain.report import Report


def patient_of(report: Report) -> Patient:
    """Of its order, else of the first slide's header that names one; nobody where none does."""
    if report.order.patient.id is not None:
        return report.order.patient
    headers = [slide.header for slide in report.slides if slide.header is not None]
    named = (Patient(each.patient_id, each.patient_id_issuer) for each in headers if each.patient_id)
    return next(named, Patient())


def several(patients: Iterable[Patient]) -> bool:
    """Whether they are not all one: ids that differ, or issuers where both give one. Blanks around a value do not count
    (PS3.5 6.2), and who is not named contradicts nobody."""
    named = list(patients)
    return any(len({value for value in values if value}) > 1 for values in zip(*map(_significant, named), strict=True))


def patient_digest(study_sha256: str, patient: Patient) -> str | None:
    """What a study's journal calls a patient: it names no one, and is another one in every study. None: not named."""
    number, issuer = _significant(patient)
    if not number:
        return None
    return hmac.new(study_sha256.encode(), f"{issuer}|{number}".encode(), "sha256").hexdigest()


def _significant(patient: Patient) -> tuple[str, str]:
    """Id and issuer."""
    return (patient.id or "").strip(" "), (patient.issuer or "").strip(" ")
