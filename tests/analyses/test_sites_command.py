"""`pathserve site`: what a person is shown, what a person decides, and what the audit trail has of it."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.analyses.ledger import Ledger
from gateway.analyses.sites import FitNotes, SiteStore
from gateway.operations.audit import AuditQuery
from gateway.operations.settings import settings
from gateway.slides.site_colour import ColourMap
from gateway.slides.site_state import SiteState
from tests.analyses.test_sites import quietly, record, source, state_of
from tests.support.commands import commands_on, run_command
from tests.support.screening_models import SOURCE, write_screening

WHO = "Dr. Ada North"


class Commands:
    """A state folder with a repository of three models; commands run in this process."""

    def __init__(self, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.state = state
        self.store = SiteStore(state)
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str]:
        """The exit status, and what was said; an error is one sentence."""
        return run_command(self._capsys, "site", *arguments)

    def add(self, state: SiteState) -> None:
        self.store.add(state, record(), quietly)

    def audited(self) -> list[dict[str, Any]]:
        """What the trail has of sites."""
        ledger = Ledger.open(f"sqlite:///{self.state / 'pathserve.db'}", self.state)
        try:
            records = ledger.trail.page(AuditQuery())
        finally:
            ledger.close()
        return [
            {"subtype": each.subtype, "entity": each.entity, "actor": each.actor, **json.loads(each.detail)}
            for each in records
            if each.entity_kind == "site"
        ]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_screening(tmp_path_factory.mktemp("models") / "repository")


@pytest.fixture
def site(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Commands]:
    with commands_on(tmp_path / "state", models, monkeypatch):
        yield Commands(tmp_path / "state", capsys)


def test_a_list_of_nothing_has_its_heads(site: Commands) -> None:
    status, out = site("list")
    assert status == 0
    assert out.split() == ["SITE", "VERSION", "STATE", "VERDICT", "MODEL", "SLIDES", "CELLS", "FITTED", "SIGNED", "BY"]
    assert json.loads(site("list", "--json")[1]) == {"items": []}


def test_a_version_is_shown_signed_and_retired_and_all_of_it_is_audited(site: Commands) -> None:
    site.add(state_of(fitted_to=SOURCE))
    status, out = site("show", "north")
    assert status == 0
    shown = dict(line.split("  ", 1) for line in out.splitlines())
    said = {name: text.strip() for name, text in shown.items()}
    assert said["state"] == "unsigned"
    assert said["model"] == "serves"
    assert (said["mapped"], said["rule"]) == ("nothing", "1")
    assert said["slides of"] == "North Hospital / Scanmaker / S1 / 77 / PAP"
    assert said["detected before"] == "10 cells (ASC-US 9, LSIL 0, ASC-H 0, HSIL 1, SCC 0, AGC 0)"
    assert said["detected after"] == "not looked at: the colours were not mapped"
    assert said["engine of smartccs_detect"] == "1" * 64

    status, out = site("sign", "north", "1", "--by", f"  {WHO} ")
    assert status == 0
    assert out == f"north version 1 is signed by {WHO}. Its slides are answered as the model is, to the bit.\n"
    [item] = json.loads(site("list", "--json")[1])["items"]
    assert (item["state"], item["signed_by"], item["model"]) == ("signed", WHO, "serves")
    status, out = site("retire", "north", "1", "--by", WHO)
    assert "The site has no signed version now." in out
    [item] = json.loads(site("list", "--json")[1])["items"]
    assert item["state"] == "retired"
    digest = site.store.version("north", 1).state.digest
    signed, retired = site.audited()
    assert (signed["subtype"], retired["subtype"]) == ("site-signed", "site-retired")
    for each in (signed, retired):
        assert (each["entity"], each["by"], each["state_sha256"]) == ("north 1", WHO, digest)
        assert each["actor"].startswith("device:")


@pytest.mark.parametrize(
    ("beta", "mapped", "meaning"),
    [
        (0.0, "colours", "That is enough: its cells' features are not mapped."),
        (0.5, "colours and cells' features", "Its slides' colours and cells' features are mapped to those"),
    ],
)
def test_what_an_adapted_state_maps_is_shown_and_said_to_who_signs_it(
    site: Commands, beta: float, mapped: str, meaning: str
) -> None:
    plain = state_of(fitted_to=SOURCE)
    colour = ColourMap(SOURCE.densities, SOURCE.densities)
    site.store.add(
        replace(plain, verdict="adapted", colour=colour, beta_D=plain.beta_D + np.float32(beta)),
        replace(record(), rule="2"),
        quietly,
    )
    shown = dict(line.split("  ", 1) for line in site("show", "north")[1].splitlines())
    assert (shown["mapped"].strip(), shown["rule"].strip()) == (mapped, "2")
    assert meaning in shown["verdict"]
    assert meaning in site("sign", "north", "1", "--by", WHO)[1]


def noted(cervical_by: str | None, silent: int, unmeasured: int) -> FitNotes:
    return FitNotes(cervical_by=cervical_by, silent=silent, stain_unmeasured=unmeasured)


ALL = "measured on 32 of 32 slides"


@pytest.mark.parametrize(
    ("notes", "specimen", "stain"),
    [
        (None, "not noted", "not noted"),
        (noted(None, 0, 0), "cervix by the headers of all slides", ALL),
        (noted("device:ada", 0, 0), "cervix, declared by device:ada, as all headers state", ALL),
        (
            noted("device:ada", 30, 2),
            "cervix, declared by device:ada; the headers of 30 of 32 do not state it",
            "measured on 30 of 32 slides; on 2 too little is stained, and it is what was stated",
        ),
    ],
)
def test_what_rests_on_words_alone_is_shown(site: Commands, notes: FitNotes | None, specimen: str, stain: str) -> None:
    site.store.add(state_of(fitted_to=SOURCE), replace(record(), notes=notes), quietly)
    shown = dict(line.split("  ", 1) for line in site("show", "north")[1].splitlines())
    assert (shown["specimen"].strip(), shown["stain"].strip()) == (specimen, stain)


def test_a_decision_that_is_refused_leaves_no_record(site: Commands) -> None:
    site.add(state_of(fitted_to=SOURCE))
    for arguments, sentence in (
        (("sign", "north", "2", "--by", WHO), "There is no version 2 of north. Known versions: 1."),
        (("sign", "south", "1", "--by", WHO), "There is no site south. Known sites: north."),
        (("sign", "no/rth", "1", "--by", WHO), "A site's name has letters"),
        (("sign", "north", "1", "--by", " "), "--by takes the name of the person"),
        (("sign", "north", "1", "--by", "x" * 65), "--by takes the name of the person"),
        (("sign", "north", "1", "--by", "A\x1bB"), "--by takes the name of the person"),
    ):
        status, line = site(*arguments)
        assert status == 1
        assert sentence in line
    assert site.audited() == []
    assert site.store.version("north", 1).signed is None


def test_a_signature_is_a_persons(site: Commands) -> None:
    site.add(state_of(fitted_to=SOURCE))
    with pytest.raises(SystemExit):
        site("sign", "north", "1")
    with pytest.raises(SystemExit):
        site("sign", "north", "0", "--by", WHO)


def test_a_state_of_another_model_may_be_signed_and_waits(site: Commands) -> None:
    site.add(state_of(fitted_to=source(gate=0.5)))
    status, out = site("sign", "north", "1", "--by", WHO)
    assert status == 0
    assert "fitted to another smartccs_slide than the one that serves" in out
    [item] = json.loads(site("list", "--json")[1])["items"]
    assert item["model"] == "another"


def test_damage_is_listed_and_not_shown(site: Commands) -> None:
    site.add(state_of(fitted_to=SOURCE))
    site.add(state_of(fitted_to=SOURCE))
    path = site.state / "sites" / "north" / "1.json"
    path.write_bytes(path.read_bytes()[:-1])
    assert [each["state"] for each in json.loads(site("list", "--json")[1])["items"]] == ["damaged", "unsigned"]
    assert site("list")[1].splitlines()[1].split()[:3] == ["north", "1", "damaged"]
    status, line = site("show", "north", "1")
    assert status == 1
    assert "damaged" in line
    assert site("show", "north", "2")[0] == 0


def test_without_models_a_list_says_that_it_does_not_know(site: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    site.add(state_of(fitted_to=SOURCE))
    empty = site.state.parent / "none"
    empty.mkdir()
    monkeypatch.setenv("PATHSERVE_MODEL_REPOSITORY", str(empty))
    settings.cache_clear()
    [item] = json.loads(site("list", "--json")[1])["items"]
    assert item["model"] == "unknown"


def test_a_copied_state_folder_has_its_sites(site: Commands, tmp_path: Path) -> None:
    site.add(state_of(fitted_to=SOURCE))
    site("sign", "north", "1", "--by", WHO)
    shutil.copytree(site.state / "sites", tmp_path / "copy" / "sites")
    copied = SiteStore(tmp_path / "copy").version("north", 1)
    assert (
        copied == site.store.version("north", 1) or copied.state.digest == site.store.version("north", 1).state.digest
    )
    assert copied.signed is not None
