"""No patient data where none belongs: one whole run with unmistakable patients, then a search of all that it wrote.

A patient may be named in the orders of the ledger, in the analyses' own files, and in the frame cache. Nowhere else.
"""

import base64
import io
import json
import logging
import os
import re
import sqlite3
import subprocess
from contextlib import ExitStack, closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.cli import main
from gateway.operations.settings import settings
from gateway.slides.phantom import write_phantom
from gateway.slides.phantom_dicom import Identity
from tests.delivery.receiver import SECRET, Receiver, running_receiver
from tests.support.gateway import PATHSERVE, Case, Gateway, case_of, case_without_slides, eventually, running_gateway
from tests.support.oidc_issuer import Issuer, running_issuer
from tests.support.orthanc import Orthanc

pytestmark = [pytest.mark.pacs, pytest.mark.triton]

IDENTITIES = [
    Identity(
        patient_id=f"PIDQ77{number}",
        patient_name=f"QUIXOTE{number}^DULCINEA",
        patient_birth_date=f"1907031{number}",
        accession=f"ACCQ77{number}",
        container=f"CONQ77{number}",
    )
    for number in (1, 2)
]
WORDS = tuple(
    word
    for identity in IDENTITIES
    for word in (
        identity.patient_id,
        *identity.patient_name.split("^"),
        identity.patient_birth_date,
        identity.accession,
        identity.container,
    )
)
IN_LEDGER = {
    # The order as it was sent, and what pages are filtered by.
    "analyses": {"order_json", "accession", "patient_id", "patient_issuer"},
    # What persons write is theirs: the form asks for it to be free of names, nobody can tell.
    "feedback": {"comment"},
    "revisions": {"reason"},
}
"""Columns that may name a patient."""
FOLDERS = ("analyses", "cache")
"""Folders of the state that may."""


def named(text: str | bytes) -> list[str]:
    """The patients' words that stand in a text, whatever the case, in base64 too."""
    content = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
    for encoded in re.findall(rb"[A-Za-z0-9+/]{12,}={0,2}", content):
        try:
            content += b"\n" + base64.b64decode(encoded + b"=" * (-len(encoded) % 4))
        except ValueError:
            continue
    return [word for word in WORDS if word.encode().lower() in content.lower()]


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@dataclass
class Run:
    """What a run has left: the state folder, what was printed and answered, and what was told to others."""

    state: Path
    printed: dict[str, str] = field(default_factory=dict)
    answered: dict[str, str] = field(default_factory=dict)
    told: list[dict[str, Any]] = field(default_factory=list)
    analyses: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def run(pacs: Orthanc, models: Path, state: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Ordered, read, signed, amended, judged, held, released, refused, failed, cancelled, exported and checked."""
    cases: list[Case] = []
    folders: list[Path] = []
    for number, identity in enumerate(IDENTITIES):
        folder = tmp_path_factory.mktemp("slide")
        write_phantom(folder, kind="he", width_px=768, height_px=768, seed=70 + number, identity=identity)
        pacs.upload(folder)
        folders.append(folder)
        cases.append(case_of(folder))
    done = Run(state)
    with ExitStack() as opened:
        receiver = opened.enter_context(running_receiver())
        issuer = opened.enter_context(running_issuer(Issuer()))
        configured = {
            "PATHSERVE_MODEL_REPOSITORY": str(models),
            "PATHSERVE_OIDC_ISSUER": issuer.url,
            "PATHSERVE_WEBHOOKS": json.dumps([receiver.url]),
            "PATHSERVE_WEBHOOK_SECRETS": json.dumps([SECRET]),
            "PATHSERVE_TENANT": "north",
            "PATHSERVE_LOG_LEVEL": "DEBUG",
        }
        gateway = opened.enter_context(running_gateway(state, pacs.address, **configured))
        person = {"Authorization": f"Bearer {issuer.token()}"}
        _whole_run(gateway, person, cases, done)
        _refusals(gateway, person, cases, done)
        done.answered["metrics"] = gateway.request("GET", "/metrics", headers={}).text
        done.answered["status"] = gateway.request("GET", "/v1/status").text
        _commands(gateway, folders[0], tmp_path_factory.mktemp("out"), done)
        done.told = _all_told(receiver)
        gateway.stop()
        done.printed["serve"] = gateway.log.read_text()
    return done


def _whole_run(gateway: Gateway, person: dict[str, str], cases: list[Case], done: Run) -> None:
    first = gateway.order(cases[0], priority="STAT")
    swapped = gateway.order(cases[0] | {"specimens": cases[1]["specimens"]})
    assert gateway.finish(first)["state"] == "completed"
    for accept in ("application/json", "application/dicom", "application/pdf", "text/html"):
        report = gateway.request("GET", f"/v1/analyses/{first}/report", headers={"Accept": accept})
        assert report.status_code == 200, report.text
    found = gateway.request("GET", "/v1/analyses", headers={"Patient-Id": IDENTITIES[0].patient_id})
    assert first in found.text

    def act(analysis: str, verb: str, body: dict[str, Any]) -> None:
        answer = gateway.request("POST", f"/v1/analyses/{analysis}/{verb}", headers=person, json=body)
        assert answer.status_code < 300, (verb, answer.text)

    act(first, "sign", {"revision": 1})
    act(first, "amend", {"reason": "Seen again.", "text": "No change of the result."})
    act(first, "feedback", {"verdict": "agree"})
    held = eventually(lambda: _held(gateway, swapped), "the swapped slide is held")
    done.answered["held"] = json.dumps(held.get("held"))
    done.answered["events of a held one"] = _events(gateway, swapped)
    act(swapped, "release", {"reason": "Checked against the request form."})
    gateway.finish(swapped)
    done.answered["deliveries"] = gateway.request("GET", f"/v1/analyses/{first}/deliveries").text
    done.analyses += [first, swapped]


def _held(gateway: Gateway, analysis: str) -> dict[str, Any] | None:
    shown = gateway.show(analysis)
    return shown if shown["state"] == "held-identity" else None


def _events(gateway: Gateway, analysis: str) -> str:
    lines: list[str] = []
    headers = {"Authorization": gateway.request("GET", "/livez").request.headers["Authorization"]}
    with httpx.stream("GET", f"{gateway.url}/v1/analyses/{analysis}/events", headers=headers, trust_env=False) as said:
        for line in said.iter_lines():
            lines.append(line)
            if "held" in line:
                break
    return "\n".join(lines)


def _refusals(gateway: Gateway, person: dict[str, str], cases: list[Case], done: Run) -> None:
    """Each answer is for a caller that has just sent the patient's data itself; what counts is what is written."""
    missing = gateway.order(cases[0] | {"specimens": case_without_slides("2.25.404")["specimens"]})
    assert gateway.finish(missing)["state"] in ("failed", "held-identity")
    done.analyses.append(missing)
    name = IDENTITIES[0].patient_name
    wrong = {**cases[0], "protocol": f"protocol-of-{name}", "patient": {"id": IDENTITIES[0].patient_id, "name": name}}
    given = {"json": cases[0]}
    for answer in (
        gateway.request("POST", "/v1/analyses", json=wrong),
        gateway.request("POST", "/v1/analyses", content=json.dumps(cases[0])[:-1]),
        gateway.request("POST", "/v1/analyses", headers=person | {"Content-Type": "text/plain"}, **given),
        gateway.request("POST", "/v1/analyses", headers={"Authorization": "Bearer no"}, **given),
        gateway.request("GET", "/v1/analyses", headers={"Authorization": f"Bearer {name}"}),
        gateway.request("GET", f"/v1/analyses/{IDENTITIES[0].patient_id}"),
        gateway.request("POST", f"/v1/analyses/{done.analyses[0]}/sign", json={"revision": 3, "comment": name}),
    ):
        assert 400 <= answer.status_code < 500, answer.text


def command(state: Path, *arguments: str) -> str:
    """What a command prints that ends well, run in this process."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(printed), redirect_stderr(printed):
        patched.setattr(logging.root, "handlers", [])  # it sets its own
        patched.setenv("PATHSERVE_STATE", str(state))
        settings.cache_clear()
        assert main(arguments) == 0, printed.getvalue()
    settings.cache_clear()
    return printed.getvalue()


def _commands(gateway: Gateway, slide: Path, out: Path, done: Run) -> None:
    for name, arguments in {
        "verify": ("audit", "verify"),
        "export": ("audit", "export"),
        "export to FHIR": ("audit", "export", "--format", "fhir"),
        "export to DICOM": ("audit", "export", "--format", "dicom"),
        "deliveries": ("deliveries", "list"),
        "deliveries as JSON": ("deliveries", "list", "--json"),
        "purge": ("purge", "--patient", IDENTITIES[0].patient_id, "--dry-run"),
    }.items():
        done.printed[name] = command(gateway.state, *arguments)
    assert done.printed["verify"].startswith("whole: ")
    analyze = [PATHSERVE, "analyze", "--protocol", "tissue-classification", "--slide", str(slide), "--out", str(out)]
    # Up to its identifiers the slide is read; no model is there.
    whole = {**os.environ, "PATHSERVE_STATE": str(gateway.state), "PATHSERVE_MODEL_REPOSITORY": str(out)}
    found = subprocess.run(analyze, env=whole, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 1
    done.printed["analyze"] = found.stdout + found.stderr


def _all_told(receiver: Receiver) -> list[dict[str, Any]]:
    def told() -> list[dict[str, Any]]:
        received = receiver.received()
        kinds = {each["body"]["type"] for each in received}
        wanted = {
            "analysis.completed",
            "analysis.held-identity",
            "analysis.released",
            "report.signed",
            "report.amended",
        }
        return received if wanted <= kinds else []

    return eventually(told, "every webhook has arrived", 30)


def test_the_run_was_one_with_patients(run: Run) -> None:
    """What may name them does: the search is not of an empty room, and it finds."""
    for folder in FOLDERS:
        files = files_of(run.state / folder)
        assert set(WORDS[:6]) <= {word for path in files for word in named(path.read_bytes())}, folder
    with closing(sqlite3.connect(run.state / "pathserve.db")) as database:
        orders = database.execute("SELECT order_json FROM analyses").fetchall()
    assert named(str(orders))
    assert named(base64.b64encode(b"<<" + WORDS[0].encode() + b">>")) == [WORDS[0]]


def test_no_other_file_names_a_patient(run: Run) -> None:
    elsewhere = [path for path in files_of(run.state) if path.relative_to(run.state).parts[0] not in FOLDERS]
    assert {"serve.jsonl", "worker.jsonl", "dbos.db", "audit-anchors.jsonl"} <= {path.name for path in elsewhere}
    found = {str(path.relative_to(run.state)): named(path.read_bytes()) for path in elsewhere}
    found.pop("pathserve.db")
    found.pop("pathserve.db-wal", None)
    assert {name: words for name, words in found.items() if words} == {}


def test_only_orders_name_a_patient_in_the_database(run: Run) -> None:
    found: dict[str, list[str]] = {}
    with closing(sqlite3.connect(run.state / "pathserve.db")) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert {"audit", "deliveries", "events", "workers", "revisions", "feedback"} <= set(tables)
        for table in tables:
            cursor = database.execute(f'SELECT * FROM "{table}"')
            columns = [column for column, *_ in cursor.description]
            for row in cursor:
                for column, value in zip(columns, row, strict=True):
                    words = named(str(value))
                    if words and column not in IN_LEDGER.get(table, ()):
                        found[f"{table}.{column}"] = words
    assert found == {}


def test_nothing_printed_names_a_patient(run: Run) -> None:
    assert {name: named(text) for name, text in run.printed.items() if named(text)} == {}


def test_no_figure_and_no_refusal_names_a_patient(run: Run) -> None:
    assert "http_request_duration_seconds" in run.answered["metrics"]
    assert {name: named(text) for name, text in run.answered.items() if named(text)} == {}


def test_no_webhook_names_a_patient(run: Run) -> None:
    assert run.told
    assert [each for each in run.told if named(json.dumps(each))] == []


def test_whoever_did_something_is_in_the_trail(run: Run) -> None:
    """The records of the run: without them the search would prove nothing of the audit trail."""
    with closing(sqlite3.connect(run.state / "pathserve.db")) as database:
        told = {subtype for (subtype,) in database.execute("SELECT subtype FROM audit")}
    assert {
        *("application-started", "application-stopped", "analysis-created", "analysis-read", "analysis-list"),
        *("analysis-held", "analysis-released", "report-made", "report-read", "report-signed", "report-amended"),
        *("feedback-given", "delivery-sent", "login-refused", "audit-exported"),
    } <= told


def test_after_a_purge_nothing_at_all_names_a_patient(run: Run) -> None:
    """The last test: it takes what the others have searched."""
    for identity in IDENTITIES:
        command(run.state, "purge", "--patient", identity.patient_id, "--cancel", "--yes")
    found = {str(path.relative_to(run.state)): named(path.read_bytes()) for path in files_of(run.state)}
    assert {name: words for name, words in found.items() if words} == {}
    assert command(run.state, "audit", "verify").startswith("whole: ")
