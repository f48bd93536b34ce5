"""Sites on disk: what is kept of a fit, who signs it, which one a slide gets, and what damage and haste do to them."""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from gateway.analyses import sites
from gateway.analyses.sites import (
    FitNotes,
    FitRecord,
    FittedSlide,
    Origin,
    SiteStore,
    differing,
    signed_state,
    site_of,
)
from gateway.domain.slide import SlideHeader
from gateway.operations import disk
from gateway.operations.errors import Conflict, InvalidInput, NotFound
from gateway.slides.site_colour import Densities
from gateway.slides.site_state import SiteState, SiteStateInvalid, Source, identity

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
HEADER = SlideHeader(
    study_uid="1.2",
    series_uid="1.2.3",
    institution="North Hospital",
    manufacturer="Scanmaker",
    model_name="S1",
    serial_number="77",
)
ORIGIN = Origin.of(HEADER, "PAP")


def source(gate: float = 0.01) -> Source:
    of = Densities((0.2, 0.3, 0.4), (0.1, 0.1, 0.1))
    return Source(of, np.zeros(4, np.float32), np.ones(4, np.float32), gate)


def state_of(site: str = "north", fitted_to: Source | None = None, cells: int = 100) -> SiteState:
    return identity(site, 0, "like the source", fitted_to or source(), slides=32, cells=cells)


def record(origin: Origin = ORIGIN) -> FitRecord:
    return FitRecord(
        origin=origin,
        slides=(FittedSlide(series_sha256="0" * 64, detected=(9, 0, 0, 1, 0, 0), detected_coloured=None),),
        left_out=0,
        models={"smartccs_detect": "1" * 64},
        user="device:tester",
        time=NOW,
        state_sha256="",
    )


def quietly(state: SiteState) -> None:
    """The audit trail, where nobody asks what it was told."""


def signed(store: SiteStore, site: str, number: int) -> None:
    store.sign(site, number, "Dr. Ada North", "device:tester", NOW, quietly)


def test_versions_count_up_and_a_state_is_what_was_fitted(tmp_path: Path) -> None:
    store = SiteStore(tmp_path)
    assert store.sites() == ()
    told: list[str] = []
    for number in (1, 2):
        made = store.add(state_of(cells=number), record(), lambda state: told.append(state.digest))
        assert made.state.version == number
    assert store.sites() == ("north",)
    first, second = store.versions("north")
    assert (first.state.cells, second.state.cells) == (1, 2)
    assert [first.state.digest, second.state.digest] == told == [first.fit.state_sha256, second.fit.state_sha256]
    assert (tmp_path / "sites" / "north" / "1.json").read_bytes() == first.state.to_bytes()
    assert all(path.is_file() and not path.is_symlink() for path in (tmp_path / "sites" / "north").iterdir())


def test_a_record_of_a_release_without_notes_keeps_its_digest(tmp_path: Path) -> None:
    """A signature has the digest of the record's bytes: what a later release notes may not change them."""
    store, path = SiteStore(tmp_path), tmp_path / "sites" / "north" / "1.fit.json"
    store.add(state_of(), record(), quietly)
    keys = {"left_out", "models", "origin", "slides", "state_sha256", "time", "user"}  # nor reasons, nor a rule
    assert json.loads(path.read_bytes()).keys() == keys
    signed(store, "north", 1)
    version = store.version("north", 1)
    assert version.fit.notes is None
    assert version.fit.rule == "1"
    assert version.signed is not None
    assert version.signed.fit_sha256 == version.fit.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_rests_on_words_alone_is_part_of_what_is_signed(tmp_path: Path) -> None:
    store, path = SiteStore(tmp_path), tmp_path / "sites" / "north" / "1.fit.json"
    notes = FitNotes(cervical_by="device:tester", silent=4, stain_unmeasured=2)
    made = store.add(state_of(), replace(record(), notes=notes), quietly)
    assert made.state.digest == replace(state_of(), version=1).digest  # which is what reports have
    signed(store, "north", 1)
    assert store.version("north", 1).fit.notes == notes
    assert b'"reasons"' not in path.read_bytes()  # as a release wrote it that took none
    path.write_bytes(path.read_bytes().replace(b'"silent":4', b'"silent":0'))
    with pytest.raises(SiteStateInvalid):
        store.version("north", 1)


def test_the_rule_of_a_fit_is_part_of_what_is_signed_and_not_of_the_state(tmp_path: Path) -> None:
    store, path = SiteStore(tmp_path), tmp_path / "sites" / "north" / "1.fit.json"
    made = store.add(state_of(), replace(record(), rule="2"), quietly)
    assert made.state.digest == replace(state_of(), version=1).digest
    signed(store, "north", 1)
    assert store.version("north", 1).fit.rule == "2"
    whole = path.read_bytes()
    for changed in (b'"rule":"3",', b"", b'"rule":"1",'):
        assert b'"rule":"2",' in whole
        path.write_bytes(whole.replace(b'"rule":"2",', changed))
        with pytest.raises(SiteStateInvalid):
            store.version("north", 1)


def test_a_record_that_lacks_a_class_is_damaged(tmp_path: Path) -> None:
    store, path = SiteStore(tmp_path), tmp_path / "sites" / "north" / "1.fit.json"
    store.add(state_of(), record(), quietly)
    path.write_bytes(path.read_bytes().replace(b"[9,0,0,1,0,0]", b"[9,0,0,1,0]"))
    with pytest.raises(SiteStateInvalid, match="damaged"):
        store.version("north", 1)


def test_nothing_but_a_signed_state_is_used_and_the_newest_of_them(tmp_path: Path) -> None:
    store = SiteStore(tmp_path)
    for cells in (1, 2, 3):
        store.add(state_of(cells=cells), record(), quietly)
    assert signed_state(tmp_path, "north", source()) is None
    signed(store, "north", 1)
    signed(store, "north", 2)
    found = signed_state(tmp_path, "north", source())
    assert found is not None
    assert (found.state.version, found.signature.by, found.signature.time) == (2, "Dr. Ada North", NOW)
    store.retire("north", 2, "Dr. Ada North", "device:tester", NOW, quietly)
    found = signed_state(tmp_path, "north", source())
    assert found is not None
    assert found.state.version == 1


def test_a_state_of_another_model_is_passed_over_and_alone_it_is_refused(tmp_path: Path) -> None:
    store, other = SiteStore(tmp_path), source(gate=0.5)
    store.add(state_of(), record(), quietly)
    store.add(state_of(fitted_to=other), record(), quietly)
    signed(store, "north", 2)
    with pytest.raises(SiteStateInvalid, match=r"was fitted to another model\. Fit the site again"):
        signed_state(tmp_path, "north", source())
    signed(store, "north", 1)
    found = signed_state(tmp_path, "north", source())
    assert found is not None
    assert found.state.version == 1
    # The model that the newer one was fitted to serves again.
    found = signed_state(tmp_path, "north", other)
    assert found is not None
    assert found.state.version == 2


def test_a_slides_site_is_the_one_whose_slides_said_the_same(tmp_path: Path) -> None:
    store = SiteStore(tmp_path)
    store.add(state_of(), record(), quietly)
    assert site_of(tmp_path, HEADER, "PAP") == "north"
    for other in (
        replace(HEADER, institution="North Hospitals"),
        replace(HEADER, serial_number="78"),
        replace(HEADER, model_name=None),
    ):
        name = site_of(tmp_path, other, "PAP")
        assert name == Origin.of(other, "PAP").name != "north"
        assert signed_state(tmp_path, name, source()) is None
    assert site_of(tmp_path, HEADER, "HE") == "North Hospital / Scanmaker / S1 / 77 / HE"
    assert site_of(tmp_path, HEADER, None) == "North Hospital / Scanmaker / S1 / 77 / unknown"
    store.retire("north", 1, "Dr. Ada North", "device:tester", NOW, quietly)
    assert site_of(tmp_path, HEADER, "PAP") == ORIGIN.name


@pytest.mark.parametrize(
    "written",
    [
        {"institution": "NORTH HOSPITAL"},
        {"institution": " North Hospital "},
        {"manufacturer": "scanmaker", "model_name": "s1 "},
        {"serial_number": "77 "},
    ],
)
def test_blanks_and_case_make_no_other_scanner(tmp_path: Path, written: dict[str, str]) -> None:
    store = SiteStore(tmp_path)
    store.add(state_of(), record(), quietly)
    header = replace(HEADER, **written)  # type: ignore[arg-type]
    assert site_of(tmp_path, header, "PAP") == "north"
    assert differing([ORIGIN, Origin.of(header, "PAP")]) == ()
    store.demand_origin("north", Origin.of(header, "PAP"))
    with pytest.raises(Conflict, match="are those of the site north"):
        store.demand_origin("copy", Origin.of(header, "PAP"))
    assert not Origin.of(replace(HEADER, institution=" ", serial_number=" "), "PAP").told


def test_of_sites_that_differ_in_case_alone_the_exact_one_is_chosen_or_none(tmp_path: Path) -> None:
    """As an earlier release told them apart."""
    store, folder = SiteStore(tmp_path), tmp_path / "sites"
    upper = replace(HEADER, institution="NORTH HOSPITAL")
    store.add(state_of("a-north"), record(), quietly)
    (folder / "a-north").rename(folder / ".aside")
    store.add(state_of("b-north"), record(Origin.of(upper, "PAP")), quietly)
    (folder / ".aside").rename(folder / "a-north")
    assert site_of(tmp_path, HEADER, "PAP") == "a-north"
    assert site_of(tmp_path, upper, "PAP") == "b-north"
    other = replace(HEADER, institution="north hospital")
    assert site_of(tmp_path, other, "PAP") == Origin.of(other, "PAP").name


def test_of_other_sites_no_more_is_read_than_where_they_are_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = two_sites(tmp_path)
    for _ in range(3):
        store.add(state_of("a-south"), record(Origin.of(ELSEWHERE, "PAP")), quietly)
        store.add(state_of(), record(), quietly)
    read: list[str] = []
    real = disk.regular_bytes

    def noted(path: Path, most_bytes: int) -> bytes | None:
        read.append(f"{path.parent.name}/{path.name}")
        return real(path, most_bytes)

    monkeypatch.setattr(sites, "regular_bytes", noted)
    assert site_of(tmp_path, HEADER, "PAP") == "north"
    assert [name for name in read if name.startswith("a-south")] == ["a-south/1.fit.json", "a-south/1.signed.json"]
    read.clear()
    signed(store, "north", 4)
    read.clear()
    assert signed_state(tmp_path, "north", source()) is not None
    assert read == ["north/4.json", "north/4.fit.json", "north/4.signed.json"]


def test_slides_without_a_scanner_match_no_site(tmp_path: Path) -> None:
    bare = replace(HEADER, institution=None, serial_number=None)
    SiteStore(tmp_path).add(state_of(), record(Origin.of(bare, "PAP")), quietly)
    assert site_of(tmp_path, bare, "PAP") == "unknown / Scanmaker / S1 / unknown / PAP"


def test_a_name_means_one_centre_scanner_and_stain(tmp_path: Path) -> None:
    store, elsewhere = SiteStore(tmp_path), replace(ORIGIN, institution="South Hospital", serial_number="5")
    store.add(state_of(), record(), quietly)
    with pytest.raises(Conflict, match=r"The site north was fitted to slides of North Hospital .* a name of"):
        store.add(state_of(), record(elsewhere), quietly)
    with pytest.raises(Conflict, match=r"are those of the site north\. Fit that one"):
        store.add(state_of("copy"), record(), quietly)
    store.retire("north", 1, "Dr. Ada North", "device:tester", NOW, quietly)
    store.add(state_of("copy"), record(), quietly)
    assert site_of(tmp_path, HEADER, "PAP") == "copy"
    assert differing([ORIGIN, elsewhere, ORIGIN]) == ("institution", "serial_number")
    assert differing([ORIGIN, ORIGIN]) == ()


def test_decisions_are_taken_once(tmp_path: Path) -> None:
    store = SiteStore(tmp_path)
    store.add(state_of(), record(), quietly)
    signed(store, "north", 1)
    with pytest.raises(Conflict, match=r"was signed by Dr\. Ada North already"):
        signed(store, "north", 1)
    store.retire("north", 1, "B", "device:tester", NOW, quietly)
    with pytest.raises(Conflict, match=r"is retired already\."):
        store.retire("north", 1, "B", "device:tester", NOW, quietly)
    with pytest.raises(Conflict, match=r"is retired\. Fit the site again"):
        signed(store, "north", 1)
    with pytest.raises(NotFound, match=r"There is no version 2 of north\. Known versions: 1"):
        signed(store, "north", 2)
    with pytest.raises(NotFound, match=r"There is no site south\. Known sites: north"):
        signed(store, "south", 1)
    assert not (tmp_path / "sites" / "south").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "a" * 65, "Nörd", "a b", "north\n"])
def test_a_name_is_a_folders_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="A site's name has letters"):
        SiteStore(tmp_path).add(state_of(name), record(), quietly)
    assert signed_state(tmp_path, name, source()) is None
    assert not list(tmp_path.rglob("*.json"))


def _changed(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"North", b"South").replace(b'"cells":100', b'"cells":999'))


def _linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("what", ["1.json", "1.fit.json", "1.signed.json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(b"\xff{}"),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b"[" * 200_000),
        _linked,
        _piped,
    ],
)
def test_damaged_files_are_refused_by_everybody(tmp_path: Path, what: str, damage: Callable[[Path], None]) -> None:
    store = SiteStore(tmp_path)
    store.add(state_of(), record(), quietly)
    signed(store, "north", 1)
    damage(tmp_path / "sites" / "north" / what)
    for ask in (
        lambda: signed_state(tmp_path, "north", source()),
        lambda: site_of(tmp_path, HEADER, "PAP"),
        lambda: store.retire("north", 1, "B", "device:tester", NOW, quietly),
    ):
        with pytest.raises(SiteStateInvalid):
            ask()


@pytest.mark.parametrize("what", ["1.json", "1.fit.json"])
def test_what_was_signed_cannot_be_changed_afterwards(tmp_path: Path, what: str) -> None:
    store = SiteStore(tmp_path)
    store.add(state_of(), record(), quietly)
    signed(store, "north", 1)
    _changed(tmp_path / "sites" / "north" / what)
    with pytest.raises(SiteStateInvalid):
        signed_state(tmp_path, "north", source())
    (tmp_path / "sites" / "north" / "1.fit.json").unlink()
    with pytest.raises(SiteStateInvalid):
        signed_state(tmp_path, "north", source())


ELSEWHERE = replace(HEADER, serial_number="5")


def two_sites(folder: Path) -> SiteStore:
    """Signed ones: north, and south from elsewhere, which comes first."""
    store = SiteStore(folder)
    for name, header in (("a-south", ELSEWHERE), ("north", HEADER)):
        store.add(state_of(name), record(Origin.of(header, "PAP")), quietly)
        signed(store, name, 1)
    return store


@pytest.mark.parametrize("what", ["1.json", "1.fit.json", "1.signed.json"])
def test_a_damaged_site_does_not_stop_slides_of_another(tmp_path: Path, what: str) -> None:
    store = two_sites(tmp_path)
    (tmp_path / "sites" / "a-south" / what).write_bytes(b"{}")
    assert site_of(tmp_path, HEADER, "PAP") == "north"
    assert signed_state(tmp_path, "north", source()) is not None
    sentence = rf"site a-south are damaged or were changed \({what}\)\. Restore sites/a-south .* or move it away"
    with pytest.raises(SiteStateInvalid, match=sentence):
        site_of(tmp_path, ELSEWHERE, "PAP")
    with pytest.raises(SiteStateInvalid, match=sentence):
        store.add(state_of("copy"), record(Origin.of(ELSEWHERE, "PAP")), quietly)


def test_slides_of_no_site_go_on_where_the_damaged_one_is_proven_to_be_from_elsewhere(tmp_path: Path) -> None:
    two_sites(tmp_path)
    other = replace(HEADER, serial_number="6")
    folder = tmp_path / "sites" / "a-south"
    (folder / "1.json").write_bytes(b"{}")
    assert site_of(tmp_path, other, "PAP") == Origin.of(other, "PAP").name
    # A fit that was changed proves nothing: it may be made to look like another place's.
    path = folder / "1.fit.json"
    path.write_bytes(path.read_bytes().replace(b'"5"', b'"9"'))
    for header in (other, ELSEWHERE):
        with pytest.raises(SiteStateInvalid, match="site a-south"):
            site_of(tmp_path, header, "PAP")


def test_another_sites_files_are_not_this_ones(tmp_path: Path) -> None:
    store = SiteStore(tmp_path)
    store.add(state_of(), record(), quietly)
    signed(store, "north", 1)
    (tmp_path / "sites" / "north").rename(tmp_path / "sites" / "south")
    with pytest.raises(SiteStateInvalid):
        signed_state(tmp_path, "south", source())


def test_a_change_that_the_trail_does_not_take_does_not_happen(tmp_path: Path) -> None:
    store = SiteStore(tmp_path)

    def silent(state: SiteState) -> None:
        raise Conflict("the trail cannot be written")

    with pytest.raises(Conflict, match="trail"):
        store.add(state_of(), record(), silent)
    assert store.sites() == ()
    store.add(state_of(), record(), quietly)
    with pytest.raises(Conflict, match="trail"):
        store.sign("north", 1, "B", "device:tester", NOW, silent)
    assert signed_state(tmp_path, "north", source()) is None


def _add_some(folder: Path, count: int) -> None:
    store = SiteStore(folder)
    for _ in range(count):
        store.add(state_of(), record(), quietly)


def test_two_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    apart = multiprocessing.get_context("forkserver")
    both = [apart.Process(target=_add_some, args=(tmp_path, 10)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert [version.state.version for version in SiteStore(tmp_path).versions("north")] == list(range(1, 21))


def _killed_as_it_writes(folder: Path, name: str) -> None:
    fsync = os.fsync

    def die(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink().name == f".{name}.part":
            os.kill(os.getpid(), 9)
        fsync(handle)

    os.fsync = die
    store = SiteStore(folder)
    store.add(state_of(), record(), quietly)
    signed(store, "north", 1)


@pytest.mark.parametrize(("name", "left"), [("1.fit.json", 0), ("1.json", 0), ("1.signed.json", 1)])
def test_a_kill_leaves_nothing_half(tmp_path: Path, name: str, left: int) -> None:
    process = multiprocessing.get_context("forkserver").Process(target=_killed_as_it_writes, args=(tmp_path, name))
    process.start()
    process.join()
    assert process.exitcode == -9
    store = SiteStore(tmp_path)
    assert len(store.versions("north")) == left
    assert signed_state(tmp_path, "north", source()) is None
    if not left:
        store.add(state_of(), record(), quietly)
    signed(store, "north", 1)
    found = signed_state(tmp_path, "north", source())
    assert found is not None
    assert found.state.version == 1
