"""`pathserve audit`: the verdict as an exit status, and the records as other systems take them."""

import base64
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from gateway.cli import main
from gateway.operations.audit import FORMATS, Action, AuditEvent, EventType, Outcome, append
from gateway.operations.audit.canonical import digest_of
from gateway.operations.audit.records import AuditQuery, records
from gateway.operations.database import open_database
from gateway.operations.settings import settings

Run = Callable[..., tuple[int, str, str]]


def written(state: Path) -> None:
    """A trail with a record of each type and action, one of which has all that a record can have."""
    engine = open_database(f"sqlite:///{state / 'pathserve.db'}", state)
    with engine.execution_options(ledger_writes=True).begin() as connection:
        for number, kind in enumerate(EventType):
            event = AuditEvent(
                type=kind,
                subtype="tested",
                action=list(Action)[number % len(Action)],
                outcome=list(Outcome)[number % len(Outcome)],
                tenant=f"tenant-{number % 2}",
                actor="person:jané <&>\"'",
                actor_kind="person",
                address="192.0.2.7" if number else None,
                entity_kind="analysis" if number else None,
                entity=f"an-{number}" if number else None,
                detail={"count": number, "reason": "a <b> & ]]>", "empty": "", "none": None, "list": ["x"]},
            )
            append(connection, event)
    engine.dispose()


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("state")
    written(folder)
    return folder


@pytest.fixture
def run(state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """The command in this process: (exit status, standard output, standard error)."""

    def run(*arguments: str, state: Path = state) -> tuple[int, str, str]:
        monkeypatch.setenv("PATHSERVE_STATE", str(state))
        settings.cache_clear()
        status = main(["audit", *arguments])
        return (status, *capsys.readouterr())

    yield run
    settings.cache_clear()


def test_a_whole_trail_is_whole_also_elsewhere(run: Run, state: Path, tmp_path: Path) -> None:
    status, here, complaint = run("verify")
    assert (status, complaint) == (0, "")
    copy = Path(shutil.copytree(state, tmp_path / "elsewhere"))
    assert run("verify", state=copy) == (0, here, "")
    last = here.splitlines()[-1].removeprefix("last: ")
    assert run("verify", "--expect", last, state=copy)[0] == 0
    status, wrong, _ = run("verify", "--expect", last[:-1] + ("0" if last[-1] != "0" else "1"), state=copy)
    assert (status, wrong.splitlines()[0].split()[1]) == (1, "rewritten")


def test_a_broken_trail_is_broken(run: Run, state: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(state, tmp_path / "broken"))
    with sqlite3.connect(copy / "pathserve.db") as connection:
        connection.execute("DROP TRIGGER audit_no_update")
        connection.execute("UPDATE audit SET actor = 'nobody' WHERE seq = 4")
    status, found, _ = run("verify", state=copy)
    assert status == 1
    assert found.splitlines()[0] == "broken: changed at record 4"


@pytest.mark.parametrize("arguments", [("verify", "--expect", "7"), ("export", "--from", "yesterday")])
def test_what_cannot_be_understood_is_told(run: Run, arguments: tuple[str, ...]) -> None:
    status, found, complaint = run(*arguments)
    assert (status, found) == (1, "")
    assert complaint.startswith("pathserve: --")


def test_an_export_can_be_verified_and_is_a_record(run: Run, state: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(state, tmp_path / "exported"))
    rows = [json.loads(line) for line in run("export", state=copy)[1].splitlines()]
    assert [row["seq"] for row in rows] == list(range(1, len(EventType) + 1))
    for row in rows:
        detail = json.dumps(row["detail"], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        assert row["hash"] == digest_of({**row, "detail": detail, "time": datetime.fromisoformat(row["time"])})
    again = [json.loads(line) for line in run("export", "--tenant", "tenant-1", state=copy)[1].splitlines()]
    assert {row["tenant"] for row in again} == {"tenant-1"}
    [told] = [json.loads(line) for line in run("export", "--tenant", "", state=copy)[1].splitlines()]
    assert (told["type"], told["subtype"], told["detail"]) == (
        EventType.AUDIT_LOG_USED,
        "audit-exported",
        {"format": "jsonl"},
    )
    assert told["actor"].startswith("device:")


def test_an_export_of_a_time(run: Run, state: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(state, tmp_path / "times"))
    assert run("export", "--to", "2001-01-01", state=copy)[1] == ""
    assert len(run("export", "--from", "2001-01-01T00:00:00+01:00", state=copy)[1].splitlines()) >= len(EventType)


def lines(state: Path, encoding: str) -> list[str]:
    engine = open_database(f"sqlite:///{state / 'pathserve.db'}", state)
    found = [FORMATS[encoding](record) for record in records(engine, AuditQuery(), len(EventType))]
    engine.dispose()
    assert not [line for line in found if "\n" in line]
    return found


def test_fhir_has_what_r4_asks_for(state: Path) -> None:
    """AuditEvent of R4: the elements that must be there, and the codes of its required bindings."""
    for number, line in enumerate(lines(state, "fhir")):
        event = json.loads(line)
        assert event["resourceType"] == "AuditEvent"
        assert event["type"]["code"] == list(EventType)[number].value
        assert event["action"] in "CRUDE"
        assert event["outcome"] in {"0", "4", "8", "12"}
        assert datetime.fromisoformat(event["recorded"]).tzinfo is not None
        [agent] = event["agent"]
        assert agent["requestor"] is True
        assert agent["who"]["identifier"]["value"].startswith("person:")
        assert ("network" in agent) == (number > 0)
        assert event["source"]["observer"]
        [entity] = event["entity"]
        assert entity["what"]["identifier"]["value"] == (f"an-{number}" if number else "pathserve")
        assert all(detail["type"] and detail["valueString"] for detail in entity["detail"])


def test_dicom_has_what_the_schema_asks_for(state: Path) -> None:
    """PS3.15 A.5.1: elements in their order, coded values with scheme and meaning, details in base64."""
    for number, line in enumerate(lines(state, "dicom")):
        message = ET.fromstring(line)
        assert [child.tag for child in message] == [
            "EventIdentification",
            "ActiveParticipant",
            "AuditSourceIdentification",
            "ParticipantObjectIdentification",
        ]
        event, participant, source, entity = message
        assert [child.tag for child in event] == ["EventID", "EventTypeCode"]
        assert event[0].attrib["csd-code"] == list(EventType)[number].value
        assert event[0].attrib["codeSystemName"] == "DCM"
        assert event[1].attrib == {
            "csd-code": "tested",
            "codeSystemName": "99PATHSERVE",
            "originalText": "tested",
        }
        assert event.attrib["EventOutcomeIndicator"] in {"0", "4", "8", "12"}
        assert participant.attrib["UserID"] == "person:jané <&>\"'"
        assert participant.attrib["UserIsRequestor"] == "true"
        assert source.attrib == {"AuditSourceID": "pathserve", "AuditEnterpriseSiteID": f"tenant-{number % 2}"}
        assert [child.tag for child in entity][:2] == ["ParticipantObjectIDTypeCode", "ParticipantObjectName"]
        details = {
            child.attrib["type"]: base64.b64decode(child.attrib["value"]).decode()
            for child in entity.iter("ParticipantObjectDetail")
        }
        assert details["reason"] == "a <b> & ]]>"
        assert set(details) == {"count", "reason", "list", "hash"}
