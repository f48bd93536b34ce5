"""The conformance statement is current, and says all that the code does."""

import re
from pathlib import Path
from random import Random

import pytest

from gateway import conformance
from gateway.archive.cache import FrameCache
from gateway.archive.dicomweb import DicomWebArchive
from gateway.reports.derived import Kind
from gateway.slides.decode import SUPPORTED
from tests.conftest import ROOT
from tests.fuzz import rogue, targets
from tests.support.dciodvfy import KNOWN_FALSE

PAGE = ROOT / "docs" / "dicom-conformance.md"


@pytest.fixture(scope="module")
def statement() -> str:
    return conformance.conformance_statement()


def test_page_is_current(statement: str) -> None:
    assert PAGE.read_text() == statement, "run `make docs`"


def test_every_kind_of_object_is_named(statement: str) -> None:
    assert [kind for kind in Kind if f"| {kind.name}: " not in statement] == []


def test_every_transfer_syntax_read_is_named(statement: str) -> None:
    read = statement.partition("Transfer syntaxes read:")[2].partition("Refused by name")[0]
    assert {uid for uid in SUPPORTED if f"(`{uid}`)" not in read} == set()
    assert len(read.strip().splitlines()) == len(SUPPORTED)


def test_every_false_error_of_the_validator_is_named(statement: str) -> None:
    said = statement.partition("## Errors that a validator says wrongly")[2]
    for message in {message for messages in KNOWN_FALSE.values() for message in messages}:
        element = re.search(r"Element=<(\w+)>|attribute <(\w+)>|Object (Not found)|(not monotonic)", message)
        assert element, message
        assert next(name for name in element.groups() if name) in said, message


def test_every_request_that_is_sent_is_named(statement: str, cmu_slide: Path, tmp_path: Path) -> None:
    services = statement.partition("## Roles and services")[2].partition("## Objects read")[0]
    asked: list[tuple[str, str]] = []

    def noted(request: rogue.Request) -> None:
        asked.append((request.kind, request.path))

    targets.copied(cmu_slide, tmp_path / "in")
    right = rogue.Rogue(Random(0), tmp_path / "in", "none", rogue.html, seen=noted)
    with rogue.running(right) as server:
        archive = DicomWebArchive.from_address(server.address)
        archive.probe()
        for entry in archive.find_series(server.study):
            targets.pull_slide(archive, entry, FrameCache(tmp_path / "cache", 1 << 30))
    paths = {path.removeprefix("/dicom-web") for _, path in asked}
    assert paths
    for path in paths:
        named = re.sub(r"/frames/.*", "/frames/{list}", path)
        named = re.sub(r"/studies/[\d.]+", "/studies/{study}", named)
        named = re.sub(r"/series/[\d.]+", "/series/{series}", named)
        named = re.sub(r"/instances/[\d.]+", "/instances/{instance}", named)
        short = "…" + named[named.index("/instances/{") :] if "/instances/{" in named else named
        assert f"`{named}`" in services or f"`{short}`" in services, named
