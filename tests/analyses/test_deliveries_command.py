"""`pathserve deliveries`: dead letters are visible and can be tried again; so are analyses that killed their worker."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.schema import ANALYSES
from gateway.cli import main
from gateway.domain.analysis import State
from gateway.domain.order import Order, SlideReference, Specimen
from gateway.http.ledger_metrics import LedgerCollector
from gateway.operations.operator import operator
from gateway.operations.settings import settings


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    monkeypatch.setenv("PATHSERVE_STATE", str(tmp_path))
    settings.cache_clear()
    opened = Ledger.open(settings().ledger_url, tmp_path)
    yield opened
    opened.close()
    settings.cache_clear()


@pytest.fixture
def dead(ledger: Ledger) -> str:
    """A dead letter; its id."""
    order = Order("tissue-classification", (Specimen(slides=(SlideReference("1.2.3"),)),))
    analysis = ledger.accept(order, operator())[0].analysis.id
    with ledger._write() as connection:
        delivery_id = ledger.outbox.add_stow(connection, analysis, 1)
    begun = ledger.outbox.begin(ledger.outbox.due(1)[0].workflow, "w-1")
    assert begun is not None
    ledger.outbox.dead(begun, "archive-refused", "The PACS did not store report.sr.dcm.")
    return delivery_id


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["deliveries", *words]) == 0
    return capsys.readouterr().out


def test_dead_letters_are_listed_and_replayed(dead: str, ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    table = said(capsys, "list", "--dead").splitlines()
    assert table[0].split() == [
        *("ID", "ANALYSIS", "REVISION", "CHANNEL", "TARGET", "EVENT", "STATE", "TRIES", "NEXT", "REASON")
    ]
    assert table[1].split()[0] == dead
    assert table[1].split()[-1] == "archive-refused"
    [item] = json.loads(said(capsys, "list", "--dead", "--json"))["items"]
    assert (item["id"], item["state"], item["tries"], item["next"]) == (dead, "dead", 1, None)
    assert item["detail"] == "The PACS did not store report.sr.dcm."

    assert dead in said(capsys, "replay", "--all-dead")
    assert "No delivery is dead." in said(capsys, "replay", "--all-dead")
    [item] = json.loads(said(capsys, "list", "--analysis", item["analysis"], "--json"))["items"]
    assert (item["id"], item["state"], item["tries"], item["replays"]) == (dead, "pending", 0, 1)
    assert [due.workflow for due in ledger.outbox.due(5)] == [f"{dead}.1.0"]
    assert json.loads(said(capsys, "list", "--dead", "--json"))["items"] == []


def test_a_wrong_id_is_told(dead: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deliveries", "replay", "unknown"]) == 1
    assert capsys.readouterr().err == "pathserve: There is no delivery with this id.\n"


def test_an_analysis_that_killed_its_worker_is_listed(
    dead: str, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    with ledger._write() as connection:
        connection.execute(ANALYSES.update().values(state=State.FAILED.value, failure_reason="kills-worker"))
    [killer] = json.loads(said(capsys, "list", "--dead", "--json"))["kills_worker"]
    assert f"The analysis {killer} is a dead letter" in said(capsys, "list")


def test_the_metrics_count_them(dead: str, ledger: Ledger) -> None:
    registry = CollectorRegistry()
    registry.register(LedgerCollector(ledger))
    text = generate_latest(registry).decode()
    assert 'deliveries{channel="stow",state="dead"} 1.0' in text
    assert 'deliveries{channel="webhook",state="dead"} 0.0' in text
