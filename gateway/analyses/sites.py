"""Sites: a centre with its scanner and stain, the states that were fitted for it, and who signed which.

On disk, a folder a site: `sites/NAME/VERSION.json` is a state's canonical bytes, and what appears last of a fit;
`VERSION.fit.json` says what was fitted to, `VERSION.signed.json` and `VERSION.retired.json` who decided what. Versions
count up, no file is ever written anew, and nothing but a signed state is used. Every change is told to the audit trail
before its file appears: a kill between the two leaves a record of what did not come into force, never a state in force
that no record tells of.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from gateway.analyses.folder_names import demand_name, is_name
from gateway.domain.bethesda import ABNORMAL
from gateway.domain.slide import SlideHeader
from gateway.operations import codec
from gateway.operations.disk import NotRegular, disk_errors, locked_folder, regular_bytes, written_whole
from gateway.operations.errors import Conflict, NotFound
from gateway.slides.site_state import SiteState, SiteStateInvalid, Source, demand_fits

FOLDER = "sites"
"""In the state folder."""
_VERSION = re.compile(r"([1-9][0-9]{0,8})\.(?:(?:signed|retired)\.)?json", re.ASCII)
"""A state, or a decision on one: where the state itself is gone the version is damaged, and not as if it never was."""
_MOST_BYTES = 16 * 2**20
"""Of one file: a state of a thousand features has 50 kB."""
_FIRST_RULE = "1"
"""By which a state was fitted whose record names no rule."""

WORDS = ("institution", "manufacturer", "model_name", "serial_number", "stain")
"""By which one origin is told from another, the names of an `Origin`'s fields."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where slides come from, as their headers say it (DICOM PS3.3 C.7.5.1), and how they are stained (HE, PAP, …);
    None where nothing is said."""

    institution: str | None
    manufacturer: str | None
    model_name: str | None
    serial_number: str | None
    stain: str | None

    @classmethod
    def of(cls, header: SlideHeader, stain: str | None) -> "Origin":
        return cls(
            institution=header.institution,
            manufacturer=header.manufacturer,
            model_name=header.model_name,
            serial_number=header.serial_number,
            stain=stain,
        )

    @property
    def name(self) -> str:
        """For a report where no site was fitted. Never the name of one that was: those have no slash."""
        return " / ".join(getattr(self, name) or "unknown" for name in WORDS)

    @property
    def words(self) -> tuple[str, ...]:
        """By WORDS, as they are compared; empty where nothing is said. Blanks round a value are none of it (LO, PS3.5
        6.2), and case is how someone wrote it: a scanner's new software is no new scanner."""
        return tuple((getattr(self, name) or "").strip(" ").casefold() for name in WORDS)

    @property
    def told(self) -> bool:
        """Whether it tells one scanner from another: by its serial number, or as the one model of an institution."""
        institution, _, model_name, serial_number, _ = self.words
        return bool(serial_number or (institution and model_name)) and self.stain is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedSlide:
    """series_sha256: of its series instance UID; detected: the cells that the detector found on it as it is, by
    abnormal class in Bethesda's order; detected_coloured: with the site's colours mapped (None: they were not)."""

    series_sha256: str
    detected: tuple[int, ...]
    detected_coloured: tuple[int, ...] | None

    def __post_init__(self) -> None:
        """Raises ValueError where a class has no count."""
        for counts in (self.detected, self.detected_coloured):
            if counts is not None and len(counts) != len(ABNORMAL):
                raise ValueError(f"cells are counted by {len(ABNORMAL)} abnormal classes")


@dataclass(frozen=True, slots=True, kw_only=True)
class FitNotes:
    """What rests on words alone. cervical_by: the account that declared the slides to be of the cervix; None: nobody
    did. silent: of how many of them the headers do not state it; stain_unmeasured: on how many too little is stained
    for the stain to be measured."""

    cervical_by: str | None
    silent: int
    stain_unmeasured: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRecord:
    """What one version rests on. models: Triton folder -> digest of its engine; left_out: slides that do not count,
    reasons: how many for which one; user: who ran the fit; rule: the version of the rule that the state was fitted by
    (`site_fit.VERSION`), which records of the first one do not say; notes, reasons: None in the records of releases
    that took none."""

    origin: Origin
    slides: tuple[FittedSlide, ...]
    left_out: int
    models: dict[str, str]
    user: str
    time: datetime
    state_sha256: str
    notes: FitNotes | None = None
    reasons: dict[str, int] | None = None
    rule: str = _FIRST_RULE

    def to_bytes(self) -> bytes:
        """Canonical JSON. What a release did not note has no key: decisions have the digest of the bytes on disk."""
        said = codec.dump(self)
        for name, unsaid in (("notes", None), ("reasons", None), ("rule", _FIRST_RULE)):
            if said[name] == unsaid:
                del said[name]
        return codec.dumps(said).encode()

    @property
    def digest(self) -> str:
        """sha256 of its bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A person's word on a version: by: who answers for it; user: the account that it was given from; state_sha256 and
    fit_sha256: on exactly which bytes."""

    by: str
    user: str
    time: datetime
    state_sha256: str
    fit_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One fit of a site, and what was decided of it."""

    state: SiteState
    fit: FitRecord
    signed: Decision | None
    retired: Decision | None

    @property
    def usable(self) -> bool:
        return self.signed is not None and self.retired is None

    def decided(self, by: str, user: str, time: datetime) -> Decision:
        """A decision on this version."""
        return Decision(by=by, user=user, time=time, state_sha256=self.state.digest, fit_sha256=self.fit.digest)


@dataclass(frozen=True, slots=True)
class Signed:
    """A state that may be used, and who signed it."""

    state: SiteState
    signature: Decision


def site_of(state_folder: Path, header: SlideHeader, stain: str | None) -> str:
    """The name of a slide's site: the fitted one whose slides had the same words in their headers, blanks and case
    apart, and this stain (of the order, else of the header); where there is none, a name made of them. Raises
    SiteStateInvalid, StateError."""
    origin, store = Origin.of(header, stain), SiteStore(state_folder)
    found = store.site_from(origin) if origin.told else None
    return found or origin.name


def signed_state(state_folder: Path, site: str, source: Source) -> Signed | None:
    """The newest signed state of a site that was fitted to the model of these source constants; None where none of
    the site's states is signed.

    Raises SiteStateInvalid where all that are signed were fitted to another model, or a file is damaged; StateError.
    """
    store, usable = SiteStore(state_folder), None
    for number in reversed(store.numbers(site)) if is_name(site) else ():
        version = store.version(site, number)
        if version.usable and version.signed is not None:
            if version.state.source_sha256 == source.digest:
                return Signed(version.state, version.signed)
            usable = usable or version
    if usable is not None:
        demand_fits(usable.state, source)
    return None


class SiteStore:
    """The sites of a state folder. What writes is locked against whoever else writes.

    Every method raises StateError, DiskFull, and SiteStateInvalid where a file is damaged.
    """

    def __init__(self, state_folder: Path) -> None:
        self._folder = state_folder / FOLDER

    def sites(self) -> tuple[str, ...]:
        """The names of all that have a fit, sorted."""
        with disk_errors():
            names = [path.name for path in self._folder.iterdir()] if self._folder.is_dir() else []
            return tuple(sorted(name for name in names if is_name(name) and self._numbers(name)))

    def versions(self, site: str) -> tuple[Version, ...]:
        """Of a site, oldest first; none where there is no such site."""
        with disk_errors():
            return tuple(self._version(site, number) for number in self._numbers(demand_site(site)))

    def numbers(self, site: str) -> tuple[int, ...]:
        """Of its versions, rising."""
        with disk_errors():
            return tuple(self._numbers(demand_site(site)))

    def version(self, site: str, number: int) -> Version:
        """One version. Raises NotFound."""
        with disk_errors():
            numbers = self._numbers(demand_site(site))
            if not numbers:
                raise NotFound(f"There is no site {site}. Known sites: {', '.join(self.sites()) or 'none'}.")
            if number not in numbers:
                raise NotFound(f"There is no version {number} of {site}. Known versions: {_list(numbers)}.")
            return self._version(site, number)

    def site_from(self, origin: Origin) -> str | None:
        """The site whose slides come from there; one whose versions are all retired counts no more. Of the others no
        more is read than tells where they are from. A damaged site stops those only whose site it may be: slides of
        another one go on, and slides of none where it is known to be from elsewhere.

        Sites of an earlier release may differ in blanks or case alone: the one with exactly these words goes first, and
        among others nobody chooses.
        """
        damaged: SiteStateInvalid | None = None
        alike: dict[str, Origin] = {}
        for site in self.sites():
            try:
                found = self._origin(site)
                if found.words == origin.words and any(each.retired is None for each in self.versions(site)):
                    alike[site] = found
            except SiteStateInvalid as error:
                damaged = damaged or error
        exact = [site for site, found in alike.items() if found == origin]
        chosen = exact or list(alike)
        if len(chosen) == 1:
            return chosen[0]
        if damaged is not None:
            raise damaged
        return None

    def demand_origin(self, site: str, origin: Origin) -> None:
        """Raise Conflict where a site of this name comes from elsewhere, or another site comes from there: a name
        always means the same centre, scanner and stain."""
        versions = self.versions(site)
        if versions and versions[0].fit.origin.words != origin.words:
            raise Conflict(
                f"The site {site} was fitted to slides of {versions[0].fit.origin.name}, and these are of "
                f"{origin.name}. Give them a name of their own."
            )
        other = self.site_from(origin)
        if other not in (None, site):
            raise Conflict(f"Slides of {origin.name} are those of the site {other}. Fit that one, or retire it first.")

    def add(self, state: SiteState, record: FitRecord, tell: Callable[[SiteState], None]) -> Version:
        """Keep a fit as the site's next version, whatever the version of `state` and the digest of `record`; `tell`
        is called before it is there. Raises Conflict as `demand_origin` does."""
        with self._writing(state.site) as folder:
            self.demand_origin(state.site, record.origin)
            number = max(self._numbers(state.site), default=0) + 1
            state = replace(state, version=number)
            record = replace(record, state_sha256=state.digest)
            tell(state)
            _write(folder / f"{number}.fit.json", record.to_bytes())
            _write(folder / f"{number}.json", state.to_bytes())
        return Version(state=state, fit=record, signed=None, retired=None)

    def sign(
        self, site: str, number: int, by: str, user: str, time: datetime, tell: Callable[[SiteState], None]
    ) -> None:
        """Let a version be used. Raises NotFound, Conflict (signed or retired already)."""
        with self._deciding(site, number) as (version, folder):
            if version.retired is not None:
                raise Conflict(f"The version {number} of {site} is retired. Fit the site again.")
            if version.signed is not None:
                raise Conflict(f"The version {number} of {site} was signed by {version.signed.by} already.")
            tell(version.state)
            _write(folder / f"{number}.signed.json", codec.dumps(version.decided(by, user, time)).encode())

    def retire(
        self, site: str, number: int, by: str, user: str, time: datetime, tell: Callable[[SiteState], None]
    ) -> None:
        """Use a version no more. Raises NotFound, Conflict (retired already)."""
        with self._deciding(site, number) as (version, folder):
            if version.retired is not None:
                raise Conflict(f"The version {number} of {site} is retired already.")
            tell(version.state)
            _write(folder / f"{number}.retired.json", codec.dumps(version.decided(by, user, time)).encode())

    def work_folder(self, site: str) -> Path:
        """Where a fit of the site keeps what it has computed, until its version is there. Made where it is not."""
        folder = self._folder / demand_site(site) / "work"
        with disk_errors():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def _numbers(self, site: str) -> list[int]:
        folder = self._folder / site
        found = (_VERSION.fullmatch(path.name) for path in (folder.iterdir() if folder.is_dir() else ()))
        return sorted({int(match[1]) for match in found if match})

    def _origin(self, site: str) -> Origin:
        """Where a site's slides come from: a name means that for good, so the first record of which a decision has the
        digest tells it, whatever else is damaged; where nobody decided anything, the first one. Raises SiteStateInvalid
        where a record is damaged and none is proven."""
        first: Origin | None = None
        damaged: SiteStateInvalid | None = None
        with disk_errors():
            for number in self._numbers(site):
                path = self._folder / site / f"{number}.fit.json"
                try:
                    fit = _loaded(FitRecord, path)
                    decided = {each.fit_sha256 for each in self._decisions(site, number) if each is not None}
                except SiteStateInvalid as error:
                    damaged = damaged or error
                    continue
                if decided == {fit.digest}:
                    return fit.origin
                if decided:
                    damaged = damaged or _damaged(path)
                first = first or fit.origin
        if damaged is not None or first is None:
            raise damaged or _damaged(self._folder / site / "1.fit.json")
        return first

    def _decisions(self, site: str, number: int) -> tuple[Decision | None, Decision | None]:
        """Signed and retired."""
        signed, retired = (
            _loaded(Decision, path) if path.exists() or path.is_symlink() else None
            for path in (self._folder / site / f"{number}.{what}.json" for what in ("signed", "retired"))
        )
        return signed, retired

    def _version(self, site: str, number: int) -> Version:
        path = self._folder / site / f"{number}.json"
        try:
            state = SiteState.from_bytes(_read(path))
        except (SiteStateInvalid, RecursionError):  # JSON may be nested without end
            raise _damaged(path) from None
        fit = _loaded(FitRecord, path.with_name(f"{number}.fit.json"))
        signed, retired = self._decisions(site, number)
        said = {(each.state_sha256, each.fit_sha256) for each in (signed, retired) if each is not None}
        whole = fit.state_sha256 == state.digest and said <= {(state.digest, fit.digest)}
        if (state.site, state.version) != (site, number) or not whole:
            raise _damaged(path)
        return Version(state=state, fit=fit, signed=signed, retired=retired)

    @contextmanager
    def _writing(self, site: str) -> Iterator[Path]:
        """The site's folder, while nobody else writes to any site's."""
        folder = self._folder / demand_site(site)
        with disk_errors():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked_folder(self._folder):
                yield folder

    @contextmanager
    def _deciding(self, site: str, number: int) -> Iterator[tuple[Version, Path]]:
        self.version(site, number)  # before anything is made
        with self._writing(site) as folder:
            yield self.version(site, number), folder


def demand_site(site: str) -> str:
    """The name of a site as it was given. Raises InvalidInput where it is none."""
    return demand_name("site", site, "north-s360-pap")


def differing(origins: Sequence[Origin]) -> tuple[str, ...]:
    """Which of their words are not the same in all of them, blanks and case apart."""
    columns = zip(*(origin.words for origin in origins), strict=True)
    return tuple(name for name, values in zip(WORDS, columns, strict=True) if len(set(values)) > 1)


def series_digest(series_uid: str) -> str:
    """What a record of a fit calls a slide: it names no one who does not have the slide."""
    return hashlib.sha256(series_uid.encode()).hexdigest()


def _write(path: Path, data: bytes) -> None:
    with written_whole(path, private=True) as out:
        out.write(data)


def _loaded(kind: type[T], path: Path) -> T:
    try:
        return codec.loads(kind, _read(path))
    except ValidationError:
        raise _damaged(path) from None


def _read(path: Path) -> bytes:
    """A regular file's bytes. Raises SiteStateInvalid where it is none, or no longer there."""
    try:
        data = regular_bytes(path, _MOST_BYTES)
    except NotRegular:
        data = None
    if data is None:
        raise _damaged(path)
    return data


def _damaged(path: Path) -> SiteStateInvalid:
    site = path.parent.name
    return SiteStateInvalid(
        f"Files of the site {site} are damaged or were changed ({path.name}). Restore {FOLDER}/{site} in the state "
        "folder from a copy, or move it away and fit the site again."
    )


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
