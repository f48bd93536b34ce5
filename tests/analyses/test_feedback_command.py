"""`pathserve feedback export`: whoever got anything of it is in the trail."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.analyses import feedback_command
from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.schema import FEEDBACK, REVISIONS
from gateway.domain.order import Order, Patient, SlideReference, Specimen
from gateway.domain.principal import Principal, PrincipalKind, Scope
from gateway.operations.audit import AuditQuery
from gateway.operations.database import open_database
from gateway.operations.settings import settings

CALLER = Principal("person:clerk", PrincipalKind.PERSON, "default", frozenset(Scope))


class Torn:
    """An output that nobody reads any more."""

    def write(self, _: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        pass


def test_an_export_that_is_torn_is_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATHSERVE_STATE", str(tmp_path))
    settings.cache_clear()
    engine = open_database(settings().ledger_url, tmp_path)
    ledger = Ledger(engine)
    slides = (SlideReference("1.2.3", ("1.2.3.1",)),)
    order = Order("tissue-classification", (Specimen(slides),), patient=Patient("P-1", None))
    name, now = ledger.accept(order, CALLER)[0].analysis.id, datetime.now(UTC)
    revision = {"state": "preliminary", "folder": "artifacts", "report_sha256": "0" * 64, "documents": [], "made": now}
    said = {"analysis_id": name, "revision": 1, "verdict": "agree", "by": CALLER.subject, "time": now}
    with engine.execution_options(ledger_writes=True).begin() as connection:
        connection.execute(REVISIONS.insert().values(analysis_id=name, number=1, **revision))
        connection.execute(FEEDBACK.insert().values(said))
    with monkeypatch.context() as torn:
        torn.setattr(sys, "stdout", Torn())
        with pytest.raises(BrokenPipeError):
            feedback_command.export()
    [record] = [each for each in ledger.trail.page(AuditQuery()) if each.subtype == "feedback-exported"]
    assert record.details == {"count": 1}
    engine.dispose()
    settings.cache_clear()
