"""`pathserve models`: what a person decides, on a site of its own; the real worker's part is in e2e/test_swap.py."""

import json
import os
import pwd
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.choices import Action, Outcome
from tests.support.commands import commands_on, run_command
from tests.support.models import read, seal, two_versions, write

MODEL = "tissue_classification"


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_versions(tmp_path_factory.mktemp("models") / "repository")


class Site:
    """A state folder and a repository; commands run in this process, without a worker unless a test plays it."""

    def __init__(self, folder: Path, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.repository = repository
        self.state = folder / "state"
        self.ledger = Ledger.open(f"sqlite:///{self.state / 'pathserve.db'}", self.state)
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str]:
        """The exit status, and what was said; an error is one sentence."""
        return run_command(self._capsys, "models", *arguments)

    def states(self) -> dict[tuple[str, str], str]:
        status, out = self("list", "--json")
        assert status == 0
        return {(each["name"], each["version"]): each["state"] for each in json.loads(out)["items"]}

    def settle(self, outcome: Outcome = Outcome.SERVING, reason: str | None = None) -> None:
        """What the worker does at its next start."""
        wish = self.ledger.choices.read().pending(MODEL)
        assert wish is not None
        assert self.ledger.choices.settle(wish.number, outcome, reason)


@pytest.fixture
def site(
    twice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Site]:
    repository = shutil.copytree(twice, tmp_path / "repository")
    with commands_on(tmp_path / "state", repository, monkeypatch):
        made = Site(tmp_path, repository, capsys)
        yield made
        made.ledger.close()


def beat(site: Site, models: list[dict[str, Any]]) -> None:
    """A worker's heartbeat."""
    site.ledger.workers.beat("w", started=datetime.now(UTC), host="h", pid=1, parts={}, models=models)


def test_what_there_is(site: Site) -> None:
    assert site.states() == {
        ("tile_encoder", "1"): "pending",
        ("tissue_head", "1"): "pending",
        ("tissue_head", "2"): "standby",
        (MODEL, "1"): "pending",
        (MODEL, "2"): "standby",
    }
    status, out = site("list")
    assert status == 0
    assert out.splitlines()[0].split() == ["MODEL", "VERSION", "STATE", "TARGET", "PRECISION", "REASON"]
    assert len(out.splitlines()) == 6


def test_one_version_in_full(site: Site) -> None:
    site("promote", MODEL, "2")
    site.settle()
    status, out = site("show", MODEL)
    assert status == 0
    for words in (
        "tissue_classification-v2",
        "Adenocarcinoma",
        "224 px",
        "APPROVED",
        "engine sha256",
        "promote version 2",
    ):
        assert words in out
    assert "tissue_classification-v2" not in site("show", MODEL, "1")[1]


def test_a_version_that_the_worker_has_not_seen_yet_is_shown(site: Site) -> None:
    beat(site, [{"name": MODEL, "version": "1", "folder": MODEL, "state": "serving"}])
    status, out = site("show", MODEL, "2")
    assert (status, "standby" in out, "APPROVED" in out) == (0, True, True)


def test_where_what_serves_is_gone_another_version_can_be_promoted(site: Site) -> None:
    site.ledger.choices.note_initial(MODEL, "1", "worker")
    shutil.rmtree(site.repository / MODEL)
    status, said = site("promote", MODEL, "2")
    assert (status, "next start" in said) == (0, True), said


def test_promoted_without_a_worker_it_is_loaded_at_the_next_start(site: Site) -> None:
    status, out = site("promote", MODEL, "2")
    assert status == 0
    assert "next start" in out
    assert site.states()[MODEL, "2"] == "pending"
    choices = site.ledger.choices.read()
    wish = choices.pending(MODEL)
    assert wish is not None
    assert (wish.version, wish.action, choices.current(MODEL)) == ("2", Action.PROMOTE, "1")
    site.settle()
    # And back again: the version that served first is known though no worker ever ran.
    status, out = site("rollback", MODEL)
    assert (status, site.states()[MODEL, "1"]) == (0, "pending")


def test_the_wish_can_be_changed_before_it_is_settled(site: Site) -> None:
    site("promote", MODEL, "2")
    status, said = site("rollback", MODEL)
    assert (status, "not settled" in said) == (1, True)
    assert site("promote", MODEL, "1")[0] == 0
    wish = site.ledger.choices.read().pending(MODEL)
    assert wish is not None
    assert wish.version == "1"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("promote", "nothing", "2"), "no model nothing"),
        (("promote", "../tissue_head", "2"), "no model"),
        (("promote", MODEL, "3"), "no version 3"),
        (("promote", MODEL, "1"), "serves already"),
        (("promote", "tissue_head", "2"), "step of tissue_classification"),
        (("rollback", MODEL), "served before"),
        (("rollback", "nothing"), "no model nothing"),
        (("retire", MODEL, "1"), "serves now"),
        (("retire", "tissue_head", "1"), "serves now"),
        (("retire", MODEL, "7"), "no version 7"),
        (("show", MODEL, "7"), "no version 7"),
        (("show", "nothing"), "no model nothing"),
    ],
)
def test_bad_input_is_a_sentence(site: Site, arguments: tuple[str, ...], words: str) -> None:
    status, said = site(*arguments)
    assert (status, words in said) == (1, True), said
    assert site.ledger.choices.read().decisions == ()


def test_a_retired_version_is_not_promoted_by_accident(site: Site) -> None:
    assert site("retire", MODEL, "2") == (
        0,
        f"{MODEL} version 2 is retired. Analyses that began with it end with it.\n",
    )
    assert site.states()[MODEL, "2"] == "retired"
    for arguments, words in ((("retire", MODEL, "2"), "retired already"), (("promote", MODEL, "2"), "was retired")):
        status, said = site(*arguments)
        assert (status, words in said) == (1, True), said
    assert site("promote", MODEL, "2", "--retired")[0] == 0
    status, said = site("retire", MODEL, "2")
    assert (status, "just promoted" in said) == (1, True)


def test_who_decided_is_not_what_the_environment_says(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody\nelse")
    site("promote", MODEL, "2")
    wish = site.ledger.choices.read().pending(MODEL)
    assert wish is not None
    assert wish.who == pwd.getpwuid(os.getuid()).pw_name


def test_a_version_that_was_not_approved(site: Site) -> None:
    folder = site.repository / f"{MODEL}-v2"
    seal(folder, state="PARSED")
    status, said = site("promote", MODEL, "2")
    assert (status, "never executed" in said) == (1, True), said
    seal(folder, state="BUILT", reduced=True)
    status, said = site("promote", MODEL, "2")
    assert (status, "too few tiles" in said) == (1, True), said


def test_a_corrupt_version(site: Site) -> None:
    (engine,) = (site.repository / "tissue_head-v2").glob("2/*")
    engine.write_bytes(engine.read_bytes()[:-1])
    status, said = site("promote", MODEL, "2")
    assert (status, "digest differs" in said) == (1, True), said


def test_what_changes_for_users_is_said(site: Site) -> None:
    card = read(site.repository / f"{MODEL}-v2", "card.json")
    card["labels"][0]["code"] = {"code": "118957004", "scheme": "SCT", "display": "Fat"}
    write(site.repository / f"{MODEL}-v2", "card.json", card)
    seal(site.repository / f"{MODEL}-v2")
    status, out = site("promote", MODEL, "2")
    assert (status, "Report codes change: no more Adipose tissue; new Fat." in out) == (0, True), out


@pytest.mark.parametrize("outcome", [Outcome.SERVING, Outcome.REFUSED])
def test_the_command_waits_for_the_worker(site: Site, outcome: Outcome) -> None:
    beat(site, [])
    refusal = f"The model {MODEL}-v2 is refused: its answers to golden.npz are not the exporter's."

    def work() -> None:
        until = time.monotonic() + 20
        while site.ledger.choices.read().pending(MODEL) is None and time.monotonic() < until:
            time.sleep(0.02)
        site.settle(outcome, refusal if outcome is Outcome.REFUSED else None)

    worker = threading.Thread(target=work)
    worker.start()
    status, said = site("promote", MODEL, "2")
    worker.join()
    expected = {
        Outcome.SERVING: (0, f"{MODEL} version 2 serves new analyses.\n", "2"),
        Outcome.REFUSED: (1, f"pathserve: {refusal} The version before goes on serving.", "1"),
    }
    assert (status, said, site.ledger.choices.read().current(MODEL)) == expected[outcome]


def test_a_worker_that_ends_meanwhile(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.analyses.models_command.SETTLE_S", 0.3)
    beat(site, [])
    status, said = site("promote", MODEL, "2")
    assert (status, "The wish stands" in said) == (1, True)


def test_no_room_for_a_decision(site: Site, tmp_path: Path) -> None:
    site.ledger.close()
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        "from gateway.cli import main; sys.exit(main(['models', 'promote', 'tissue_classification', '2']))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=dict(os.environ), capture_output=True, text=True)
    [line] = done.stderr.splitlines()
    assert (done.returncode, line.startswith("pathserve: ")) == (1, True), done.stderr
    assert "free some space" in line
