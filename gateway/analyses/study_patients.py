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


def drawn_as(patient: Patient) -> str | None:
    """One name for all that is of one patient; None: not named."""
    number, issuer = _significant(patient)
    return f"{issuer}|{number}" if number else None


def patient_digest(key: str, patient: Patient) -> str | None:
    """What a study's journal calls a patient, by the study's own secret `key` (hexadecimal): without it no number can
    be tried, and it is another one in every study. None: not named."""
    name = drawn_as(patient)
    return None if name is None else hmac.new(bytes.fromhex(key), name.encode(), "sha256").hexdigest()


def _significant(patient: Patient) -> tuple[str, str]:
    """Id and issuer."""
    return (patient.id or "").strip(" "), (patient.issuer or "").strip(" ")
