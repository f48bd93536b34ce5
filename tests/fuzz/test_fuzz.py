"""A fixed sample of the fuzz, one case of each kind of damage; the harness's own control; and the campaign's page."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.campaign import PAGE, RESULTS, page
from tests.fuzz.cases import MUTATORS, case_of
from tests.fuzz.corpus import corpus
from tests.fuzz.runner import ROOT, run

SAMPLE = range(7 * len(MUTATORS), 8 * len(MUTATORS))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # One for all tests of a run.
    return corpus(tmp_path_factory.getbasetemp() / "corpus")


@pytest.mark.timeout(240)
def test_no_damage_is_answered_by_anything_but_a_result_or_a_typed_error(damaged: Path) -> None:
    found = run(SAMPLE, damaged)
    assert [case.seed for case in found] == list(SAMPLE)
    failed = [
        f"{case.seed} {case.subject}/{case.mutator} of {case.source}: {case.verdict}"
        for case in found
        if case.verdict.failed
    ]
    assert not failed, "\n".join(failed)
    # Were all refused, or all read, the damage would be no test of what it damages.
    for subject in {subject for subject, _ in MUTATORS}:
        outcomes = {case.verdict.outcome for case in found if case.subject == subject}
        assert outcomes == {"result", "refused"} or subject in ("partial", "pacs"), (subject, outcomes)


def test_a_seed_is_the_same_case_again(damaged: Path, tmp_path: Path) -> None:
    for seed in SAMPLE[::17]:
        folders = []
        for attempt in ("first", "second"):
            folder = tmp_path / f"{seed}-{attempt}"
            folder.mkdir()
            case_of(seed, damaged).damage(folder)
            files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
            folders.append({path.name: path.read_bytes() for path in files})
        assert folders[0] == folders[1]


def test_the_harness_catches_every_planted_bug() -> None:
    # In a process of one thread, as the workers are.
    code = "import json; from tests.fuzz.campaign import control_row; print(json.dumps(control_row()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    control = json.loads(done.stdout)
    assert {name: row["verdict"] for name, row in control.items()} == {
        name: row["expected"] for name, row in control.items()
    }


def test_the_page_says_what_the_campaign_found() -> None:
    document = json.loads(RESULTS.read_text())
    assert PAGE.read_text() == page(document)
    assert document["cases"] >= 500
    assert document["failed"] == []
    assert document["control_held"]
    assert {(row["subject"], row["mutator"]) for row in document["mutators"]} == set(MUTATORS)
