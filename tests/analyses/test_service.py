"""The use-cases: by whom each may be used, in which tenant, and what the audit trail has of it."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from gateway.analyses.forms import AmendBody, FeedbackBody
from gateway.analyses.ledger import AnalysisQuery, Ledger
from gateway.analyses.order_form import EXAMPLE, OrderBody
from gateway.analyses.reads import Lately, ResultFiles
from gateway.analyses.service import Service
from gateway.domain.order import Order, Patient, Priority, RegionUm
from gateway.domain.principal import Principal, PrincipalKind, Scope
from gateway.domain.segment import SegmentAsk
from gateway.operations.audit.table import AUDIT
from gateway.operations.errors import (
    InvalidOrder,
    NotAcceptable,
    NotFound,
    PathserveError,
    ReportNotReady,
    StateError,
    UnknownProtocol,
    WrongScope,
)
from gateway.operations.settings import Settings

ASK = SegmentAsk(
    study="1.2.3", series="1.2.3.4", region=RegionUm(0, 0, 100, 100), prompts=("nuclei in colon",), patient=Patient()
)
USES: dict[str, tuple[Scope, Callable[[Service, Principal, str], Any]]] = {
    "create": (Scope.ANALYSES_WRITE, lambda service, by, _: service.create(by, order())),
    "create_batch": (Scope.ANALYSES_WRITE, lambda service, by, _: service.create_batch(by, [(order(), None)])),
    "page": (Scope.ANALYSES_READ, lambda service, by, _: service.page(by, AnalysisQuery(), 10)),
    "get": (Scope.ANALYSES_READ, lambda service, by, analysis: service.get(by, analysis)),
    "events": (Scope.ANALYSES_READ, lambda service, by, analysis: service.events(by, analysis)),
    "cancel": (Scope.ANALYSES_WRITE, lambda service, by, analysis: service.cancel(by, analysis)),
    "retry": (Scope.ANALYSES_WRITE, lambda service, by, analysis: service.retry(by, analysis)),
    "prioritise": (Scope.ANALYSES_WRITE, lambda service, by, each: service.prioritise(by, each, Priority.STAT)),
    "release": (Scope.ANALYSES_SIGN, lambda service, by, analysis: service.release(by, analysis, "because")),
    "sign": (Scope.ANALYSES_SIGN, lambda service, by, analysis: service.sign(by, analysis)),
    "amend": (
        Scope.ANALYSES_SIGN,
        lambda service, by, analysis: service.amend(by, analysis, AmendBody(reason="a", text="b").domain()),
    ),
    "give_feedback": (
        Scope.ANALYSES_WRITE,
        lambda service, by, analysis: service.give_feedback(by, analysis, FeedbackBody(verdict="agree").domain()),
    ),
    "feedback": (Scope.ANALYSES_READ, lambda service, by, analysis: service.feedback(by, analysis)),
    "report": (Scope.ANALYSES_READ, lambda service, by, analysis: service.report(by, analysis, "application/json")),
    "documents": (Scope.ANALYSES_READ, lambda service, by, analysis: service.documents(by, analysis)),
    "artifacts": (Scope.ANALYSES_READ, lambda service, by, analysis: service.artifacts(by, analysis)),
    "artifact": (Scope.ANALYSES_READ, lambda service, by, analysis: service.artifact(by, analysis, "report.json")),
    "revisions": (Scope.ANALYSES_READ, lambda service, by, analysis: service.revisions(by, analysis)),
    "deliveries": (Scope.ANALYSES_READ, lambda service, by, analysis: service.deliveries(by, analysis)),
    "segment": (Scope.ANALYSES_WRITE, lambda service, by, _: service.segment(by, ASK).result(60)),
    "protocols": (Scope.MODELS_READ, lambda service, by, _: service.protocols(by)),
    "models": (Scope.MODELS_READ, lambda service, by, _: service.models(by)),
    "status": (Scope.ANALYSES_READ, lambda service, by, _: service.status(by)),
    "audit": (Scope.AUDIT_READ, lambda service, by, _: service.audit(by, after=0, limit=10)),
}
OF_NONE = ("create", "create_batch", "page", "segment", "protocols", "models", "status", "audit")
OF_ONE = [name for name in USES if name not in OF_NONE]


def order(**more: Any) -> Order:
    return OrderBody.model_validate(copy.deepcopy(EXAMPLE) | more).domain()


def person(*scopes: Scope, tenant: str = "default", kind: PrincipalKind = PrincipalKind.PERSON) -> Principal:
    return Principal("person:a", kind, tenant, frozenset(scopes), address="10.1.2.3")


EVERYBODY = person(*Scope)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{tmp_path / 'pathserve.db'}", tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def service(ledger: Ledger, tmp_path: Path) -> Iterator[Service]:
    service = Service(Settings(state=tmp_path, model_repository=tmp_path / "models"), ledger)
    yield service
    service.close()


def trail(ledger: Ledger) -> list[dict[str, Any]]:
    with ledger._engine.connect() as connection:
        return [dict(row) for row in connection.execute(sa.select(AUDIT).order_by(AUDIT.c.seq)).mappings()]


def test_every_use_case_is_among_those_tested_here() -> None:
    public = {name for name in vars(Service) if not name.startswith("_")}
    # No use-case of its own: `require`, `feed`, `is_over` (`get` says it), `stop` and `close` (the owner's).
    assert public - {"require", "feed", "is_over", "stop", "close"} == USES.keys()


def test_each_needs_its_scope_and_a_refusal_is_audited(service: Service, ledger: Ledger) -> None:
    for number, (name, (scope, use)) in enumerate(USES.items(), 1):
        others = person(*(each for each in Scope if each not in (scope, Scope.ADMIN)))
        with pytest.raises(WrongScope, match=scope.value):
            use(service, others, "no-analysis")
        record = trail(ledger)[-1]
        assert len(trail(ledger)) == number, name
        assert (record["subtype"], record["outcome"], record["detail"]["scope"]) == ("access-refused", "4", scope.value)
        assert (record["actor"], record["address"], record["tenant"]) == ("person:a", "10.1.2.3", "default")


def test_nobody_but_a_person_signs(service: Service) -> None:
    for kind in (PrincipalKind.SYSTEM, PrincipalKind.KEY, PrincipalKind.DEVICE):
        for name, (scope, use) in USES.items():
            if scope is Scope.ANALYSES_SIGN:
                with pytest.raises(WrongScope, match="person"):
                    use(service, person(*Scope, kind=kind), "x")
                assert name in ("release", "sign", "amend")


def test_another_tenants_analysis_is_not_there_and_the_look_at_it_is_audited(service: Service, ledger: Ledger) -> None:
    theirs = service.create(EVERYBODY, order())[0].analysis.id
    stranger = person(*Scope, tenant="elsewhere")
    for name in OF_ONE:
        for analysis_id in (theirs, "no-such"):
            with pytest.raises(NotFound) as caught:
                USES[name][1](service, stranger, analysis_id)
            assert caught.value.detail == "There is no analysis with this id.", name
        refused = [each for each in trail(ledger) if each["subtype"] == "access-refused"][-1]
        assert (refused["entity"], refused["tenant"]) == (theirs, "elsewhere"), name
    assert len([each for each in trail(ledger) if each["subtype"] == "access-refused"]) == len(OF_ONE)
    assert service.page(stranger, AnalysisQuery(), 10).items == ()


def test_a_refusal_stands_where_the_database_is_down(service: Service, ledger: Ledger) -> None:
    with ledger._engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE audit RENAME TO gone"))
    with pytest.raises(WrongScope):
        service.create(person(), order())
    with pytest.raises(StateError):
        service.create(EVERYBODY, order())  # what cannot be audited is not done
    with ledger._engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE gone RENAME TO audit"))
    assert ledger.statistics().by_state == {}


def test_a_batch_is_answered_order_by_order(service: Service) -> None:
    answers = service.create_batch(
        EVERYBODY,
        [
            (order(), "a"),
            (order(protocol="no-such"), None),
            (order(), "a"),
            (order(prompts=["x"]), None),
            (order(), None),
        ],
    )
    assert [each.reason if isinstance(each, PathserveError) else each.analysis.state for each in answers] == [
        *("accepted", UnknownProtocol.reason, "accepted", InvalidOrder.reason, "accepted"),
    ]
    first, third = answers[0], answers[2]
    assert not isinstance(first, PathserveError)
    assert first == third
    assert service.create_batch(EVERYBODY, [(order(protocol="no-such"), None)])[0].reason == "unknown-protocol"


def test_a_client_that_waits_is_audited_once(service: Service, ledger: Ledger) -> None:
    one, other = (service.create(EVERYBODY, order())[0].analysis.id for _ in range(2))
    for _ in range(5):
        service.get(EVERYBODY, one)
        service.events(EVERYBODY, one)
    service.get(EVERYBODY, other)
    reads = [each["entity"] for each in trail(ledger) if each["subtype"] == "analysis-read"]
    assert reads == [one, other]
    for _ in range(2):
        service.page(EVERYBODY, AnalysisQuery(), 10)
    lists = [each for each in trail(ledger) if each["subtype"] == "analysis-list"]
    assert [each["detail"] for each in lists] == [{"found": 2}] * 2


def test_readers_are_remembered_for_ten_minutes_and_no_more_of_them_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr("gateway.analyses.reads.time.monotonic", lambda: now_s[0])
    lately = Lately()
    assert [lately.is_new("a", "1"), lately.is_new("a", "1"), lately.is_new("b", "1")] == [True, False, True]
    now_s[0] = 601.0
    assert lately.is_new("a", "1")
    for number in range(10_001):
        lately.is_new("c", str(number))
    assert len(lately._seen) == 10_000


def test_without_a_report_it_is_said_why(service: Service) -> None:
    analysis_id = service.create(EVERYBODY, order())[0].analysis.id
    for name in ("report", "documents", "artifact", "sign", "amend", "give_feedback"):
        with pytest.raises(ReportNotReady):
            USES[name][1](service, EVERYBODY, analysis_id)
    assert service.artifacts(EVERYBODY, analysis_id) == ()
    assert service.revisions(EVERYBODY, analysis_id) == ()


def test_a_revisions_files_are_its_own_and_of_the_earlier_ones_what_it_left(tmp_path: Path) -> None:
    for folder, names in (("1", ("report.json", "seg.dcm", ".report.part")), ("2", ("report.json", "report-2.sr.dcm"))):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_text(f"{folder} {name}")
    files = ResultFiles(2, (tmp_path / "2", tmp_path / "1", tmp_path / "gone"))
    assert [(each.name, each.path.parent.name) for each in files.all()] == [
        *(("report-2.sr.dcm", "2"), ("report.json", "2"), ("seg.dcm", "1")),
    ]
    assert files.report("application/json").path.read_text() == "2 report.json"
    for missing in (".report.part", "../1/report.json", "", "."):
        with pytest.raises(NotFound):
            files.named(missing)
    with pytest.raises(NotAcceptable):
        files.report("text/csv")
    (tmp_path / "2" / "secret").symlink_to("/etc/passwd")
    assert "secret" not in [each.name for each in files.all()]
