"""Who is enrolled in a study: all of a call or nobody, and no accession whose orders are of several patients."""

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway import cli
from gateway.analyses.study_journal import Entry, Journal, Kind
from gateway.analyses.study_patients import drawn_as, patient_digest, several
from gateway.analyses.study_register import Register
from gateway.domain.order import Patient
from tests.analyses.study_support import Cohort
from tests.reports.screened import negative


def enrol(*wanted: str) -> tuple[str, ...]:
    return ("enrol", "north", *wanted, "--centre", "east")


@pytest.fixture
def cohort(cohort: Cohort) -> Cohort:
    """With a study that has begun."""
    cohort.new()
    return cohort


def joined(cohort: Cohort, folder: Path, text: str) -> None:
    (folder / "reference.csv").write_text("accession,category\n" + text)
    cohort.does("join", "north", str(folder / "reference.csv"))


@pytest.mark.parametrize(
    ("patients", "expected"),
    [
        ([], False),
        ([Patient("1", "A"), Patient(), Patient("1 "), Patient(" 1", "A")], False),
        ([Patient("1"), Patient("01")], True),
        ([Patient("1", "A"), Patient("1", "B")], True),
        ([Patient("1", "A"), Patient("2")], True),
    ],
)
def test_patients_are_several_where_an_id_or_an_issuer_differs(patients: list[Patient], expected: bool) -> None:
    assert several(patients) is expected


def test_a_patient_is_noted_without_being_named_and_is_another_one_in_every_study(cohort: Cohort) -> None:
    cohort.new("south")
    cohort.order("A1", "PATIENT-7")
    for name in ("north", "south"):
        cohort.does("enrol", name, "A1", "A2", "--centre", "east")
    entries = [Journal(cohort.folder(name) / "journal.jsonl").read()[-1] for name in ("north", "south")]
    first, second = ([case["patient"] for case in entry.data["cases"]] for entry in entries)
    assert first == [patient_digest(cohort.record().patient_key, Patient("PATIENT-7")), None]
    assert first[0] != second[0]
    assert b"PATIENT-7" not in (cohort.folder() / "journal.jsonl").read_bytes()


def test_what_is_printed_of_a_study_does_not_tell_who_its_patients_are(cohort: Cohort, tmp_path: Path) -> None:
    """The key is in a file that only its owner reads, and in nothing that a study gives out."""
    cohort.answer(_ordered_and_enrolled(cohort), negative)
    joined(cohort, tmp_path, "A1,NILM\n")
    record = cohort.record()
    key = record.patient_key
    assert len(bytes.fromhex(key)) == 32
    assert (cohort.folder() / "study.json").stat().st_mode & 0o777 == 0o600
    said = cohort.does("show", "north") + cohort.does("report", "north")
    cohort.does("report", "north", "--out", str(tmp_path / "out"))
    given_out = said + "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    assert record.digest in given_out
    assert key not in given_out
    assert key not in (cohort.folder() / "journal.jsonl").read_text()
    [entry] = [each for each in Journal(cohort.folder() / "journal.jsonl").read() if each.kind is Kind.ENROLLED]
    noted = entry.data["cases"][0]["patient"]
    assert noted not in {patient_digest(guess, Patient("P1")) for guess in (record.digest, record.settings_sha256)}


def _ordered_and_enrolled(cohort: Cohort) -> str:
    analysis = cohort.order("A1", "P1")
    cohort.does(*enrol("A1"))
    return analysis


def test_blanks_do_not_make_two_patients_of_one() -> None:
    one = [Patient("1", "A"), Patient(" 1", "A "), Patient("1 ", " A")]
    assert len({drawn_as(patient) for patient in one}) == 1
    assert len({patient_digest("00", patient) for patient in one}) == 1
    assert len({drawn_as(patient) for patient in (*one, Patient("1"), Patient("01", "A"))}) == 3
    assert [drawn_as(Patient(blank)) for blank in (None, "", "  ")] == [None] * 3


def test_an_accession_whose_orders_name_different_patients_is_not_enrolled(cohort: Cohort) -> None:
    for accession, patient in (("A1", "P1"), ("A2", "P2"), ("A1", "P9"), ("A3", None), ("A3", "P3")):
        cohort.order(accession, patient)
    before = (cohort.folder() / "journal.jsonl").read_bytes()
    said = cohort.refuses(*enrol("A2", "A1"))
    assert "Orders of one accession name different patients: A1." in said
    assert (cohort.folder() / "journal.jsonl").read_bytes() == before
    said = cohort.does(*enrol("--waiting"))
    assert said.startswith("2 enrolled at east; 2 take part.")
    assert "not enrolled, since orders of the accession name different patients: A1\n" in said


def test_an_answer_whose_accession_became_another_patients_gives_no_figure(cohort: Cohort, tmp_path: Path) -> None:
    cohort.does(*enrol("A3"))  # before it is ordered
    orders = {name: cohort.order(name, f"P-{name}") for name in ("A1", "A2", "A3")}
    cohort.does(*enrol("A1", "A2"))
    for analysis in orders.values():
        cohort.answer(analysis, negative)
    for name in ("A2", "A3"):
        cohort.order(name, "P9")
    cohort.order("A1", "P-A1")
    joined(cohort, tmp_path, "A1,NILM\nA2,NILM\nA3,NILM\n")
    doubt = "orders of its accession name different patients"
    said = cohort.refuses("report", "north")
    assert f"(A3: {doubt}; A2: {doubt}). No figure" in said
    for name in ("A2", "A3"):
        cohort.does("exclude", "north", name, "--reason", doubt)
    assert "| pooled | 1 | 0 | 1 |" in cohort.does("report", "north")


def test_an_answer_of_another_patient_than_was_enrolled_gives_no_figure(cohort: Cohort, tmp_path: Path) -> None:
    analysis = cohort.order("A1", "P1")
    cohort.does(*enrol("A1"))
    order = cohort.ledger.get(analysis, "default").analysis.order
    cohort.answer(analysis, negative, order=replace(order, patient=Patient("P2")))
    joined(cohort, tmp_path, "A1,NILM\n")
    assert "its order names another patient than when it was enrolled" in cohort.refuses("report", "north")


def _killed(state: Path, models: Path, before: bool) -> None:
    """An enrolment that is killed before, or right after, its first line is on the disk."""
    os.environ |= {"PATHSERVE_STATE": str(state), "PATHSERVE_MODEL_REPOSITORY": str(models)}
    append = Journal.append

    def die(self: Journal, *said: Any) -> Entry:
        if not before:
            append(self, *said)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    Journal.append = die  # type: ignore[method-assign]
    cli.main(["study", *enrol("A1", "A2", "A3")])


@pytest.mark.parametrize(("before", "enrolled"), [(True, 0), (False, 3)])
def test_a_kill_leaves_all_of_a_call_enrolled_or_nobody(
    cohort: Cohort, screening_models: Path, before: bool, enrolled: int
) -> None:
    killed = multiprocessing.get_context("forkserver").Process(
        target=_killed, args=(cohort.state, screening_models, before)
    )
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert len(Register.of(Journal(cohort.folder() / "journal.jsonl").read()).enrolled) == enrolled
    if enrolled:
        assert "Enrolled or excluded already, or named twice: A1, A2, A3" in cohort.refuses(*enrol("A1", "A2", "A3"))
    said = cohort.does(*enrol(*(["A4"] if enrolled else ["A1", "A2", "A3"])))
    assert f"{enrolled + 1 if enrolled else 3} take part" in said
