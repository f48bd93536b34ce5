"""`pathserve study`: registered before results, answered by what was frozen, counted as by hand, never rewritten."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway import __version__
from gateway.analyses.sites import SiteStore
from gateway.analyses.study_answers import Asked, LedgerAnswers
from gateway.analyses.study_journal import Entry, Journal, Kind
from gateway.analyses.study_record import StudyRecord
from gateway.analyses.study_store import StudyStore
from gateway.domain.order import Order, RegionUm
from gateway.domain.report import Report, SlideReading
from gateway.domain.screened import ScreeningResult
from gateway.inference import ModelRepository
from gateway.operations.audit import AuditEvent, AuditQuery
from gateway.operations.settings import settings
from gateway.reports import to_json
from tests.analyses.study_support import PROTOCOL, WHO, Cohort
from tests.analyses.test_sites import quietly, record, signed, state_of
from tests.reports.screened import MOSTLY_HSIL, MOSTLY_NILM, abnormal, classes_of, negative, unsatisfactory
from tests.support.screening_models import ABNORMAL_FROM, SOURCE


def reference(folder: Path, text: str) -> str:
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:8]}.csv"
    path.write_text("accession,category,histology\n" + text)
    return str(path)


def kept_abnormal(slide: SlideReading) -> ScreeningResult:
    """Adaptation would turn it normal: the call without it stands."""
    return abnormal(slide, classes=classes_of(MOSTLY_NILM, MOSTLY_HSIL))


def lines(cohort: Cohort, name: str = "north") -> tuple[Entry, ...]:
    return Journal(cohort.folder(name) / "journal.jsonl").read()


def test_what_answers_now_is_frozen(cohort: Cohort, screening_models: Path) -> None:
    store = SiteStore(cohort.state)
    store.add(state_of(fitted_to=SOURCE), record(), quietly)
    store.add(
        state_of("unsigned", fitted_to=SOURCE), replace(record(), origin=replace(record().origin, stain="HE")), quietly
    )
    signed(store, "north", 1)
    cohort.order("OLD")
    cohort.new("north", "--title", "Consecutive smears", "--set", "adequacy.min_cells=5000")
    frozen = cohort.record()
    repository = ModelRepository(screening_models)
    assert [each.folder for each in frozen.models] == ["smartccs_detect", "smartccs_embed", "smartccs_slide"]
    assert [each.version for each in frozen.models] == [repository.card(each.folder).version for each in frozen.models]
    assert frozen.models[2].card_sha256 == repository.provenance("smartccs_slide").files["card.json"]
    assert (frozen.software, frozen.operating_point, frozen.abnormal_from) == (
        __version__,
        "95 % sensitivity",
        ABNORMAL_FROM,
    )
    assert frozen.changes == (("adequacy.min_cells", "5000"),)
    assert frozen.settings["adequacy.min_cells"] == 5000
    [site] = frozen.sites
    assert (site.site, site.version, site.digest) == ("north", 1, store.version("north", 1).state.digest)
    assert (frozen.by, frozen.tenant, frozen.after) == (WHO, "default", 1)
    assert lines(cohort)[0].data == {"record_sha256": frozen.digest}
    assert hashlib.sha256((cohort.folder() / "study.json").read_bytes()).hexdigest() == frozen.digest
    assert frozen.digest in cohort.does("show", "north")
    assert "Choose another name" in cohort.refuses("new", "north", "--protocol", PROTOCOL, "--by", WHO)
    assert "has no setting" in cohort.refuses("new", "n", "--protocol", PROTOCOL, "--by", WHO, "--set", "a=1")
    assert "not of segmentation" in cohort.refuses("new", "n", "--protocol", "segmentation", "--by", WHO)


def test_figures_are_those_counted_by_hand(cohort: Cohort, tmp_path: Path) -> None:
    cohort.new()
    orders = {name: cohort.order(name, f"P-{name}") for name in ("A1", "A2", "A3", "A4", "A5", "A6")}
    cohort.does("enrol", "north", *orders, "--centre", "east")
    later = cohort.does("enrol", "north", "B1", "--centre", "west")  # before it is ordered
    assert "7 take part" in later
    for name, reading in (
        ("A1", abnormal),
        ("A2", negative),
        ("A3", negative),
        ("A4", kept_abnormal),
        ("A5", unsatisfactory),
    ):
        cohort.answer(orders[name], reading)
    cohort.fail(orders["A6"])
    cohort.answer(cohort.order("B1"), abnormal)
    cohort.does(
        "join",
        "north",
        reference(tmp_path, "A1,HSIL,CIN 3\nA2,LSIL,\nA3,NILM,\nA4,NILM,\nA5,HSIL,CIN 3\nA6,NILM,\nB1,HSIL,\n"),
    )
    out = tmp_path / "out"
    cohort.does("report", "north", "--out", str(out))
    data = (out / "study-report.json").read_bytes()
    document = json.loads(data)
    east = document["centres"]["east"]
    assert east["outcomes"] == {
        "abnormal": 2,
        "negative": 2,
        "unsatisfactory": 1,
        "withheld": 0,
        "not read": 1,
        "no answer yet": 0,
    }
    shares = {
        way: [(each["of"], each["among"]) for each in (sides["sensitivity"], sides["specificity"])]
        for way, sides in east["sides"].items()
    }
    # Abnormal: A1 (called), A2 (missed), A5 (no call). NILM: A3 (right), A4 (called abnormal), A6 (no call).
    assert shares == {"called only": [(1, 2), (1, 2)], "as abnormal": [(2, 3), (1, 3)], "as negative": [(1, 3), (2, 3)]}
    # What the calls rest on: A1 and A4 have 0.9375, A2, A3 and A5 0.0625. A1 beats A3 and ties with A4, A2 and A5 tie
    # with A3 and lose to A4: 2.5 of 6 pairs. A6 has no probability.
    assert east["auc"]["value"] == pytest.approx(2.5 / 6)
    assert (east["auc"]["positives"], east["auc"]["negatives"], east["patients"]) == (3, 2, 6)
    assert east["auc"]["low"] <= 2.5 / 6 <= east["auc"]["high"]
    scores = {case["accession"]: (case["outcome"], case["score"]) for case in document["cases"]}
    assert scores["A4"] == ("abnormal", 0.9375)  # as the call without the adaptation stands
    point = document["study"]["abnormal_from"]
    assert all((score >= point) == (outcome == "abnormal") for outcome, score in scores.values() if score is not None)
    # Without adaptation A1 has 0.75 and A4 0.9375: A1 beats A3, A2 and A5 tie with it.
    assert east["auc_unadapted"]["value"] == pytest.approx((1 + 0.5 + 0.5) / 6)
    assert east["confusion"]["HSIL"]["HSIL"] == 1
    assert east["confusion"]["HSIL"]["unsatisfactory"] == 1
    assert east["confusion"]["LSIL"]["NILM"] == 1
    assert east["confusion"]["NILM"]["not read"] == 1
    assert east["adaptation"]["to_normal"] == {"reference abnormal": 0, "reference NILM": 1}
    assert east["adaptation"]["to_abnormal"] == {"reference abnormal": 0, "reference NILM": 0}
    assert east["histology"]["CIN 3"]["unsatisfactory"] == 1
    assert document["centres"]["west"]["auc"]["value"] is None
    assert document["pooled"]["cases"] == 7
    assert document["pooled"]["sides"]["called only"]["sensitivity"]["among"] == 3
    assert (document["look"], document["study_sha256"]) == (1, cohort.record().digest)
    assert lines(cohort)[-1].data == {"look": 1, "report_sha256": hashlib.sha256(data).hexdigest()}
    page = (out / "study-report.md").read_text()
    assert "| east | called cases only | 0.500 [0.095, 0.905] (1 of 2) | 0.500 [0.095, 0.905] (1 of 2) |" in page
    assert cohort.record().digest in page
    assert "Composed" not in page
    assert "Look 2" in cohort.does("report", "north")


def test_a_result_that_is_there_is_not_enrolled_and_gaps_are_told(cohort: Cohort, tmp_path: Path) -> None:
    cohort.new()
    orders = {name: cohort.order(name) for name in ("A1", "A2", "A3", "A4")}
    unnamed = cohort.order(None)
    cohort.order("A5")
    cohort.answer(orders["A2"], negative)
    cohort.fail(orders["A3"])
    for name in ("A2", "A3"):
        assert f"Answered before they were enrolled: {name}" in cohort.refuses(
            "enrol", "north", "A1", name, "--centre", "east"
        )
    assert len(lines(cohort)) == 1
    cohort.does("exclude", "north", "A3", "--reason", "glass slide lost")
    said = cohort.does("enrol", "north", "--waiting", "--centre", "east")
    assert said.splitlines()[0] == "3 enrolled at east; 3 take part."
    assert said.splitlines()[1] == f"gaps: ordered before the last one and not enrolled: A2, {unnamed}"
    assert "Enrolled or excluded already" in cohort.refuses("enrol", "north", "A1", "--centre", "east")
    cohort.order("A1")
    cohort.does("join", "north", reference(tmp_path, "A1,NILM,\n"))
    assert "enrolment is closed" in cohort.refuses("enrol", "north", "A9", "--centre", "east")
    cohort.does("exclude", "north", "A4", "--reason", "consent withdrawn")
    cohort.does("report", "north", "--out", str(tmp_path / "out"))
    document = json.loads((tmp_path / "out" / "study-report.json").read_bytes())
    assert document["enrolment"]["gaps"] == ["A2", unnamed]
    assert document["enrolment"]["repeats"] == ["A1"]
    assert document["enrolment"]["no_answer"] == ["A1", "A5"]
    assert document["enrolment"]["without_reference"] == ["A5"]
    [lost, withdrawn] = document["enrolment"]["excluded"]
    assert (lost["accession"], lost["enrolled"], lost["answered"], lost["joined"]) == ("A3", False, True, False)
    assert (withdrawn["accession"], withdrawn["enrolled"], withdrawn["joined"]) == ("A4", True, True)


def test_a_worker_that_was_faster_leaves_no_case(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort.new()
    analysis = cohort.order("A1")
    looks: list[bool] = []
    real = LedgerAnswers.is_answered

    def look(self: LedgerAnswers, asked: Asked) -> bool:
        looks.append(real(self, asked))
        if len(looks) == 1:
            cohort.answer(analysis, negative)
        return looks[-1]

    monkeypatch.setattr(LedgerAnswers, "is_answered", look)
    said = cohort.does("enrol", "north", "A1", "--centre", "east")
    assert looks == [False, True]
    assert said.splitlines()[:2] == [
        "0 enrolled at east; 0 take part.",
        "excluded, since it was answered while it was being enrolled: A1",
    ]


Changes = dict[str, Any]
OTHERS: dict[str, Callable[[Report], Changes]] = {
    "other models (smartccs_detect 1)": lambda made: {
        "models": (replace(made.models[0], engine_sha256="0" * 64), *made.models[1:])
    },
    "other models (some are missing)": lambda made: {"models": made.models[1:]},
    "pathserve 0.0.0 in place of": lambda made: {"software": replace(made.software, version="0.0.0")},
    "another card of a model": lambda _: {"card_sha256": "0" * 64},
    "other settings": lambda made: {"order": replace(made.order, settings=(("adequacy.min_cells", "1"),))},
    "only a region was read": lambda made: {"order": replace(made.order, region=RegionUm(0, 0, 10, 10))},
    "another operating point": lambda made: {"screenings": (replace(made.screenings[0], abnormal_from=0.25),)},
    "version 4 of the site": lambda made: {
        "screenings": (replace(made.screenings[0], adaptation=replace(made.screenings[0].adaptation, version=4)),)
    },
}


def test_another_answer_than_the_frozen_one_gives_no_figure(cohort: Cohort, tmp_path: Path) -> None:
    cohort.new()
    orders = {f"A{number}": cohort.order(f"A{number}") for number in range(len(OTHERS) + 1)}
    cohort.does("enrol", "north", *orders, "--centre", "east")
    for (accession, analysis), changes in zip(orders.items(), [None, *OTHERS.values()], strict=True):
        order = Order(PROTOCOL, (), accession=accession)
        made = cohort.report(negative, cohort.record(), analysis, order)
        cohort.answer(analysis, negative, **(changes(made) if changes else {}))
    cohort.does("join", "north", reference(tmp_path, "A0,HSIL,\nA1,NILM,\n"))
    before = len(lines(cohort))
    line = cohort.refuses("report", "north")
    assert f"{len(OTHERS)} cases were not answered by what was frozen, or their patient is in doubt (A1: " in line
    for number, sentence in enumerate(OTHERS, 1):
        assert f"A{number}: {sentence}" in line
    assert len(lines(cohort)) == before  # nobody has looked
    for number in range(1, len(OTHERS) + 1):
        cohort.does("exclude", "north", f"A{number}", "--reason", "answered by another version")
    page = cohort.does("report", "north")
    assert "| A1 | yes | yes | yes | answered by another version |" in page
    assert "| pooled | 1 | 1 | 1 | 0 | 0 | 0 | 0 | 0 |" in page


def test_a_site_that_was_signed_later_is_another_answer(cohort: Cohort, tmp_path: Path) -> None:
    store = SiteStore(cohort.state)
    store.add(state_of(fitted_to=SOURCE), record(), quietly)
    signed(store, "north", 1)
    cohort.new()
    used = store.version("north", 1).state
    for name, version, digest in (("A1", 1, used.digest), ("A2", 2, "0" * 64)):
        analysis = _enrolled(cohort, name)
        made = cohort.report(abnormal, cohort.record(), analysis, Order(PROTOCOL, (), accession=name))
        adaptation = replace(made.screenings[0].adaptation, site="north", version=version, digest=digest)
        cohort.answer(analysis, abnormal, screenings=(replace(made.screenings[0], adaptation=adaptation),))
    cohort.does("join", "north", reference(tmp_path, "A1,HSIL,\nA2,HSIL,\n"))
    assert "(A2: version 2 of the site north in place of 1)" in cohort.refuses("report", "north")


def test_a_reference_is_joined_once_and_a_correction_supersedes_it(cohort: Cohort, tmp_path: Path) -> None:
    cohort.new()
    cohort.answer(_enrolled(cohort, "A1"), abnormal)
    assert "no reference standard yet" in cohort.refuses("report", "north")
    first, second = reference(tmp_path, "A1,NILM,\n"), reference(tmp_path, "A1,HSIL,\n")
    assert "Leave --supersede out" in cohort.refuses("join", "north", first, "--supersede", "x")
    assert "row 2: A9 does not take part" in cohort.refuses("join", "north", reference(tmp_path, "A9,NILM,\n"))
    cohort.does("join", "north", first)
    assert "needs --supersede REASON" in cohort.refuses("join", "north", second)
    assert "version 1 of the reference standard already" in cohort.refuses("join", "north", first, "--supersede", "x")
    assert "it supersedes version 1" in cohort.does("join", "north", second, "--supersede", "read | again")
    page = cohort.does("report", "north")
    digest = hashlib.sha256(Path(first).read_bytes()).hexdigest()
    assert f"it supersedes version 1 (`{digest}`): read \\| again" in page
    assert "| pooled | called cases only | 1.000 [0.207, 1.000] (1 of 1) | no case |" in page


def test_what_was_written_cannot_be_changed_unseen(cohort: Cohort) -> None:
    cohort.new()
    _enrolled(cohort, "A1")
    _enrolled(cohort, "A2")
    journal, frozen = cohort.folder() / "journal.jsonl", cohort.folder() / "study.json"
    whole, record_bytes = journal.read_bytes(), frozen.read_bytes()
    first, *rest = whole.splitlines(keepends=True)

    # A line changed, and one taken away from the end: the chain alone would not tell the latter.
    for data, sentence in (
        (whole.replace(b'"centre":"east"', b'"centre":"west"', 1), "line 2 of its journal was changed"),
        (b"".join((first, *rest[:-1])), "ends with line 2, but had 3"),
        (b"", "ends with line 0, but had 3"),
    ):
        journal.write_bytes(data)
        assert sentence in cohort.refuses("show", "north")
        assert sentence in cohort.refuses("enrol", "north", "A3", "--centre", "east")
    # Written anew from the second line on, with a chain that is right in itself.
    journal.write_bytes(first)
    rewritten = Journal(journal)
    for line in rest:
        said = json.loads(line)
        rewritten.append(rewritten.read(), Kind(said["kind"]), said["user"], said["data"] | {"centre": "west"})
    assert "line 2 of its journal is not the one that the audit trail knows" in cohort.refuses("show", "north")
    journal.write_bytes(whole)
    cohort.does("show", "north")
    frozen.write_bytes(record_bytes.replace(b'"seed":2026', b'"seed":2027'))
    assert "study.json is not what the journal's first line has the digest of" in cohort.refuses("show", "north")
    frozen.unlink()
    assert "study.json cannot be read" in cohort.refuses("show", "north")
    journal.unlink()
    cohort.folder().rmdir()
    assert "There is no study north" in cohort.refuses("show", "north", "--tenant", "south")
    assert "There is, or was, a study north" in cohort.refuses("new", "north", "--protocol", PROTOCOL, "--by", WHO)


def _enrolled(cohort: Cohort, accession: str) -> str:
    analysis = cohort.order(accession)
    cohort.does("enrol", "north", accession, "--centre", "east")
    return analysis


def test_a_kill_leaves_one_line_that_the_trail_is_told_of_with_the_next(cohort: Cohort) -> None:
    cohort.new()
    journal = Journal(cohort.folder() / "journal.jsonl")
    case = {"analysis": None, "number": None, "series": [], "patient": None}
    data = {"centre": "east", "cases": [case | {"accession": "A1"}]}
    journal.append(journal.read(), Kind.ENROLLED, "device:killed", data)
    cohort.does("show", "north")
    cohort.does("exclude", "north", "A2", "--reason", "no consent")
    told = [each.details for each in cohort.ledger.trail.page(AuditQuery(entity=("study", "north")))]
    assert told == [
        {"kind": each.kind.value, "line": each.seq, "sha256": each.hash, "user": each.user} for each in lines(cohort)
    ]
    assert [each["user"] == "device:killed" for each in told] == [False, True, False]  # not as whoever told of it
    for number in (3, 4):
        journal.append(
            journal.read(), Kind.ENROLLED, "device:killed", data | {"cases": [case | {"accession": f"A{number}"}]}
        )
    assert "the audit trail was never told of line 4" in cohort.refuses("show", "north")


def test_a_report_that_was_changed_in_the_state_folder_is_found(cohort: Cohort, tmp_path: Path) -> None:
    cohort.new()
    analysis = _enrolled(cohort, "A1")
    cohort.answer(analysis, negative)
    cohort.does("join", "north", reference(tmp_path, "A1,NILM,\n"))
    path = cohort.state / "analyses" / analysis / "artifacts" / "report.json"
    path.write_bytes(path.read_bytes().replace(b"0.9375", b"0.9475"))
    assert f"the report of analysis {analysis} is not the one" in cohort.refuses("report", "north")


def test_another_tenants_study_and_orders_are_not_there(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort.new()
    cohort.order("A1", tenant="south")
    cohort.answer(cohort.order("A2", tenant="south"), negative)
    nobody = "There is no study north"
    assert nobody in cohort.refuses("show", "north", "--tenant", "south")
    assert nobody in cohort.refuses("enrol", "north", "A1", "--centre", "east", "--tenant", "south")
    assert nobody in cohort.refuses("exclude", "north", "A1", "--reason", "x", "--tenant", "south")
    assert cohort.does("enrol", "north", "--waiting", "--centre", "east").startswith("0 enrolled")
    # Its own A2 is another case than the one of the other tenant, which has a result.
    cohort.does("enrol", "north", "A2", "--centre", "east")
    assert lines(cohort)[-1].data["cases"][0]["analysis"] is None
    monkeypatch.setenv("PATHSERVE_TENANT", "south")
    settings.cache_clear()
    assert nobody in cohort.refuses("show", "north")


def test_composed_slides_are_read_from_folders_and_named_so(cohort: Cohort, tmp_path: Path) -> None:
    cohort.new("north", "--composed")
    results = tmp_path / "results"

    def write(accession: str, folder: str, late_s: float = 0) -> None:
        made = cohort.report(abnormal, cohort.record(), folder, Order(PROTOCOL, (), accession=accession))
        (results / folder).mkdir(parents=True)
        issued = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=late_s)
        (results / folder / "report.json").write_bytes(to_json(replace(made, issued=issued)))

    write("C0", "slide-0")
    folder = ("--results", str(results))
    assert "name the reports' folder by --results" in cohort.refuses("enrol", "north", "C1", "--centre", "stain A")
    assert "Answered before they were enrolled: C0" in cohort.refuses(
        "enrol", "north", "C0", "--centre", "stain A", *folder
    )
    assert "--waiting belongs to orders" in cohort.refuses("enrol", "north", "--waiting", "--centre", "a", *folder)
    cohort.does("enrol", "north", "C1", "C2", "--centre", "stain A", *folder)
    write("C1", "slide-1")
    write("C2", "slide-2", late_s=3600)
    cohort.does("join", "north", reference(tmp_path, "C1,HSIL,\nC2,NILM,\n"))
    assert "(C2: it was answered before it was enrolled)" in cohort.refuses("report", "north", *folder)
    cohort.does("exclude", "north", "C2", "--reason", "answered too early", *folder)
    page = cohort.does("report", "north", *folder)
    assert "**Composed centres**" in page
    assert "| stain A | 1 | 1 | 1 | 0 | 0 | 0 | 0 | 0 |" in page
    cohort.new("clinical")
    assert "leave --results out" in cohort.refuses("enrol", "clinical", "C1", "--centre", "a", *folder)


def test_a_new_study_is_on_the_disk_with_its_names_before_the_trail_is_told(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder keeps a file's name only once it is flushed itself: else a power cut takes what the trail knows of."""
    done: list[str] = []
    fsync, event = os.fsync, StudyStore._event

    def flushed(handle: int) -> None:
        done.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def told(self: StudyStore, record: StudyRecord, entry: Entry) -> AuditEvent:
        done.append("told")
        return event(self, record, entry)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(StudyStore, "_event", told)
    cohort.new()
    before = done[: done.index("told")]
    assert {cohort.state.name, "studies"} <= set(before)
    assert "north" in before[before.index("journal.jsonl") :]
