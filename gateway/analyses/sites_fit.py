"""`pathserve site fit`: the unlabelled slides of a site through the engines that serve, and a state fitted to them.

Slides are looked at one after the other, by the pass that analyses make: as they are and, where the site is unlike the
model's source, again with its colours mapped. They are taken in the order of their UIDs, so that the same slides give
the same bytes in whatever order they were named.
"""

import shutil
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from anyio.from_thread import BlockingPortal, start_blocking_portal

from gateway.analyses.fetched import Fetched
from gateway.analyses.pins import Pins
from gateway.analyses.probabilities import softmax
from gateway.analyses.protocols import options_of, protocol_named
from gateway.analyses.pull import CasePull
from gateway.analyses.screening_models import ScreeningModels, answered
from gateway.analyses.screening_plan import LEAST_CELL_UM2
from gateway.analyses.screening_tiles import AS_IT_IS, Look
from gateway.analyses.sites import (
    FitNotes,
    FitRecord,
    FittedSlide,
    Origin,
    SiteStore,
    Version,
    demand_site,
    differing,
    series_digest,
)
from gateway.analyses.sites_command import Desk, described, now, opened
from gateway.analyses.sites_seen import Seen, SeenSlide, reads_of, see, slide_facts
from gateway.analyses.slide_half import Engine, ServedModel, SlideTask
from gateway.analyses.specimen import declared
from gateway.archive import Archive, SeriesEntry
from gateway.archive.cache import FrameCache
from gateway.domain.analysis import Progress, Step
from gateway.domain.bethesda import CLASSES, NILM
from gateway.domain.codes import Code
from gateway.domain.order import Order, SlideReference, Specimen
from gateway.domain.slide import SlideHeader
from gateway.domain.tables import stain_name
from gateway.inference import ModelRepository, TritonEngine
from gateway.operations.columns import print_columns
from gateway.operations.disk import disk_errors, locked_folder
from gateway.operations.errors import (
    ArchiveUnavailable,
    Conflict,
    FramesNotFetched,
    InvalidInput,
    ModelChanged,
    PathserveError,
    SlideError,
    SlideNotInArchive,
)
from gateway.operations.operator import operator
from gateway.operations.settings import Settings
from gateway.slides import Slide, pap_stain, quality, smear_quality
from gateway.slides.cells import VERSION as MERGING
from gateway.slides.site_colour import ColourMap
from gateway.slides.site_fit import LEAST_SLIDES, Cells, SiteCells, SiteNotFittable, Weights, demand_spread, fit
from gateway.slides.site_fit import VERSION as RULE
from gateway.slides.site_state import Features

PROTOCOL = "cervical-screening"
_TURNS = 5
"""Fetches of a slide's frames before a fit gives it up."""
_CERVICAL = Specimen(slides=(), site=Code("71252005", "SCT", "Cervix uteri structure"))
Show = Callable[[Progress], None]
Opening = Callable[[Settings, Sequence[str]], AbstractAsyncContextManager[Engine]]
"""Opens the engines of some folders."""
T = TypeVar("T")


def fit_site(
    site: str,
    archive: Archive,
    entries: Sequence[SeriesEntry],
    stain: str | None,
    show: Show,
    opening: Opening = TritonEngine.open,
    *,
    cervical: bool = False,
) -> int:
    """Fit the next version of a site to these slides, and print what was found. `stain`: of those whose headers do not
    state it; `cervical`: those whose headers state no specimen are of the cervix; `show` is told how far it is.

    Raises InvalidInput, Conflict, SiteNotFittable, SiteStateInvalid, ModelNotLoaded, ModelRefused, ModelsUnfit,
    ModelChanged, ArchiveError, InferenceError, StateError, DiskFull.
    """
    demand_site(site)
    with opened() as desk, _work_folder(desk.store, site) as work:
        fitting = _Fitting(desk, site, archive, work, stain, cervical, show, opening)
        try:
            version = fitting.run(entries)
        finally:
            for series, error in sorted(fitting.left_out.items()):
                print(f"left out: series {series}: {error.detail}")
        shutil.rmtree(work, ignore_errors=True)
        print_columns(described(version, "unsigned", desk.source()))
    number = version.state.version
    print(f"Nothing of it is used until a person has signed it: pathserve site sign {site} {number} --by PERSON")
    return 0


class SpecimenNotCervical(SlideError):
    """A slide of something else: a site is not fitted to it."""

    reason, title = "specimen-not-cervical", "The specimen is not of the cervix"


class SpecimenTwice(SlideError):
    """A glass slide that was scanned again, or another one of the same specimen: it is no more of a site's slides."""

    reason, title = "specimen-twice", "The specimen counts already"


class SlideWithoutCells(SlideError):
    """A slide on which no cell was found: a site's features are not judged by it."""

    reason, title = "no-cell", "No cell was found"


@contextmanager
def _work_folder(store: SiteStore, site: str) -> Iterator[Path]:
    """The site's work folder, while nobody else fits it."""
    folder = store.work_folder(site)
    with ExitStack() as held:
        with disk_errors():
            try:
                held.enter_context(locked_folder(folder, wait=False))
            except BlockingIOError:
                raise Conflict(f"Another fit of {site} runs. Wait for it.") from None
        yield folder


@dataclass(eq=False)
class _Fitting:
    """One fit at work. `left_out`: series -> why it does not count. What is held of slides is never their cells: they
    lie in the work folder, and a slide's are read at a time."""

    desk: Desk
    site: str
    archive: Archive
    work: Path
    stain: str | None
    cervical: bool
    show: Show
    opening: Opening
    left_out: dict[str, PathserveError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings = self.desk.settings
        self._repository = repository = ModelRepository(settings.model_repository)
        protocol = protocol_named(PROTOCOL)
        self._pins = Pins.choose(protocol, self.desk.ledger.choices.read(), repository)
        self._served = tuple(
            ServedModel(folder=folder, card=repository.card(folder), contract=repository.contract(folder))
            for folder in self._pins.folders.values()
        )
        self._cache = FrameCache(settings.state / "cache", settings.cache_bytes)
        self._facts: dict[str, dict[str, object]] = {}
        self._silent: set[str] = set()  # whose headers do not state the specimen
        self._specimens: dict[str, frozenset[tuple[str, ...]]] = {}  # what tells whose glass a slide is, by its series
        self._models = ScreeningModels.of(self._served)
        self._looked = 0

    def run(self, entries: Sequence[SeriesEntry]) -> Version:
        """The next version of the site, kept."""
        slides = sorted({entry.series: entry for entry in entries}.values(), key=lambda entry: entry.series)
        self._demand_enough(len(slides))
        origins = self._origins(slides)
        origin = self._one_origin(origins)
        self.desk.store.demand_origin(self.site, origin)
        slides = [slide for slide in slides if slide.series in origins]
        with self._engines_of() as engines:
            try:
                return self._fitted(slides, origin, engines)
            except ArchiveUnavailable as error:
                raise ArchiveUnavailable(
                    f"{error.detail} What was seen of {self._looked} of the site's slides is kept: call the fit again "
                    "once the archive answers, and it goes on behind them.",
                    error.after_s,
                ) from None

    def _fitted(self, slides: Sequence[SeriesEntry], origin: Origin, engines: "_Engines") -> Version:
        plain = self._seen(slides, AS_IT_IS, engines)
        slides = [slide for slide in slides if slide.series in plain]
        self._demand_enough(len(slides))
        coloured: dict[str, SeenSlide] = {}

        def cells(colour: ColourMap | None) -> Cells:
            nonlocal coloured
            if colour is not None:
                coloured = self._seen(slides, Look("site", colour), engines)
                if lost := [slide for slide in slides if slide.series not in coloured]:
                    raise SiteNotFittable(
                        f"The slide {lost[0].series} could be read once and not again. Fit the site anew."
                    )
            seen = tuple((plain if colour is None else coloured).values())
            demand_spread([each.cells for each in seen])
            return _SlideBySlide(seen, partial(self._cells, engines))

        counts_3V = np.sum([seen.counts_3V for seen in plain.values()], axis=0)
        state = fit(self.site, 1, self._models.source, len(slides), counts_3V, cells)
        fitted = tuple(
            FittedSlide(
                series_sha256=series_digest(slide.series),
                detected=plain[slide.series].detected,
                detected_coloured=coloured[slide.series].detected if coloured else None,
            )
            for slide in slides
        )
        record = FitRecord(
            origin=origin,
            slides=fitted,
            left_out=len(self.left_out),
            models={pin.folder: pin.engine_sha256 for pin in self._pins.pins},
            user=operator().subject,
            time=now(),
            state_sha256=state.digest,
            notes=FitNotes(
                cervical_by=operator().subject if self.cervical else None,
                silent=sum(slide.series in self._silent for slide in slides),
                stain_unmeasured=sum(not plain[slide.series].stain_measured for slide in slides),
            ),
            reasons=dict(Counter(error.reason for error in self.left_out.values())),
            rule=RULE,
        )
        if not self._pins.hold(self._repository):
            raise ModelChanged("A model was changed while the site was fitted to it. Fit the site again.")
        return self.desk.store.add(state, record, self.desk.fitted(len(slides)))

    # Which slides

    def _demand_enough(self, slides: int) -> None:
        if slides >= LEAST_SLIDES:
            return
        without = f", and {len(self.left_out)} more could not be used" if self.left_out else ""
        raise SiteNotFittable(
            f"A site is fitted to {LEAST_SLIDES} slides or more, and these are {slides}{without}. Add slides."
        )

    def _origins(self, slides: Sequence[SeriesEntry]) -> dict[str, Origin]:
        """Where each slide comes from that can be opened and is not of something else than the cervix, by its series;
        only headers are fetched. Raises InvalidInput where nobody says what they are of."""
        origins: dict[str, Origin] = {}
        for slide in slides:
            with self._tolerated(slide):
                files = self.archive.fetch(slide, self._cache, wanted={}).files
                with Slide.open(files) as opened_slide:
                    header = opened_slide.header
                    stated = self._states_cervix(header)
                    self._facts[slide.series] = slide_facts(opened_slide)
                    self._specimens[slide.series] = _specimens(header)
                if not stated:
                    self._silent.add(slide.series)
                origins[slide.series] = Origin.of(header, stain_name(header.stains) or self.stain)
        self._demand_enough(self._distinct(origins))
        if self._silent and not self.cervical:
            raise InvalidInput(
                f"The headers of {len(self._silent)} slides do not state a specimen of the cervix. Give --cervical if "
                "that is what they are of, or map the laboratory's codes in the setting specimen_codes."
            )
        return origins

    def _states_cervix(self, header: SlideHeader) -> bool:
        """Whether a slide's header states a specimen of the cervix; False where it says nothing of it. Raises
        SpecimenNotCervical where it states another one."""
        codes = self.desk.settings.specimen_codes
        if not declared(_CERVICAL, header, codes).cervical:  # even with that declared: the header contradicts it
            stated = ", ".join(repr(code.display) for code in (*header.kinds, *header.preparation))
            raise SpecimenNotCervical(f"Its header contradicts that it is a smear of the cervix; it states {stated}.")
        return declared(Specimen(slides=()), header, codes).cervical

    def _one_origin(self, origins: dict[str, Origin]) -> Origin:
        """Where all of them come from. Raises InvalidInput where that is not one place, or cannot be told."""
        found = list(origins.values())
        if names := differing(found):
            raise InvalidInput(
                "The slides are not of one centre, scanner and stain: "
                + "; ".join(f"{name} is {_counted([getattr(each, name) for each in found])}" for name in names)
                + ". Fit each by itself."
            )
        [origin, *_] = found
        if origin.stain is None:
            raise InvalidInput("The slides' headers do not state the stain. Give --stain PAP if that is what they are.")
        stains = self._models.slide.card.intended_use.stains
        if origin.stain not in stains:
            raise InvalidInput(f"The slides' stain is {origin.stain}; the model is for {', '.join(stains)}.")
        if not origin.told:
            raise InvalidInput(
                "The slides' headers name neither the scanner's serial number nor its model and the institution, so no "
                "later slide could be told to be of this site. Let the scanner or the archive write them."
            )
        return origin

    def _distinct(self, series: Iterable[str]) -> int:
        """How many of these slides are not of the specimen of one before them."""
        known: set[tuple[str, ...]] = set()
        count = 0
        for each in series:
            count += known.isdisjoint(self._specimens[each])
            known |= self._specimens[each]
        return count

    @contextmanager
    def _tolerated(self, slide: SeriesEntry) -> Iterator[None]:
        """A slide that cannot be read is left out, with the reason, and the others go on."""
        try:
            yield
        except (SlideError, SlideNotInArchive) as error:
            self.left_out[slide.series] = error

    # What is seen of them

    def _seen(self, slides: Sequence[SeriesEntry], look: Look, engines: "_Engines") -> dict[str, SeenSlide]:
        """What one look sees of each slide that counts, by its series. As they are, those count that have cells and are
        of a specimen of their own; with mapped colours all do."""
        seen: dict[str, SeenSlide] = {}
        known: dict[tuple[str, ...], str] = {}
        total = self._looked + len(slides)
        for slide in slides:
            self.show(Progress(Step.INFER, self._looked, total, "slides"))
            with self._tolerated(slide):
                specimens = self._specimens[slide.series]
                if twin := next((known[each] for each in specimens if each in known), None):
                    raise SpecimenTwice(f"It is of the same specimen as the series {twin}, which counts.")
                found = self._look_at(slide, look, engines)
                if look is AS_IT_IS and not found.cells:
                    raise SlideWithoutCells("No cell was found on the slide.")
                seen[slide.series] = found
                known |= dict.fromkeys(specimens, slide.series)
            self._looked += 1
        self.show(Progress(Step.INFER, total, total, "slides"))
        return seen

    def _look_at(self, slide: SeriesEntry, look: Look, engines: "_Engines") -> SeenSlide:
        """One slide, from the work folder where it was seen before."""
        order = Order(protocol=PROTOCOL, specimens=(self._specimen(slide),))
        folder = self.work / series_digest(slide.series)[:32]
        kept, of = folder / f"{look.name}.npz", self._decided_by(slide, look)
        if (seen := Seen.load(kept, of)) is not None:
            return seen.held(kept, of)

        @contextmanager
        def task_of(fetched: Fetched) -> Iterator[SlideTask]:
            with Slide.open(fetched.files) as opened_slide:
                yield SlideTask(  # no state folder: a fit looks at slides as no site's
                    slide=opened_slide,
                    models=self._served,
                    order=order,
                    specimen=order.specimens[0],
                    options=options_of(protocol_named(PROTOCOL), order),
                    folder=folder / look.name,
                )

        pull = CasePull(
            order,
            self.archive,
            self._cache,
            opened=task_of,
            check=lambda slides: None,  # a site's slides are of many patients, and nothing is reported of them
            plan=lambda task: reads_of(task, look),
            progress=lambda done, total: None,
            cancelled=engines.stopping.is_set,
        )

        def look_once() -> Seen:
            [fetched] = pull.run()
            with self._cache.hold(fetched.files), task_of(fetched) as task:
                return engines.run(partial(see, cancelled=engines.stopping.is_set), task, look, engines.engine)

        seen = _in_turns(look_once)
        seen.save(kept, of)
        shutil.rmtree(folder / look.name, ignore_errors=True)
        return seen.held(kept, of)

    def _decided_by(self, slide: SeriesEntry, look: Look) -> dict[str, object]:
        """All that decides what a look sees of a slide."""
        models = [(pin.folder, pin.engine_sha256, pin.card_sha256) for pin in self._pins.pins]
        return {
            "slide": self._facts[slide.series],
            "models": models,
            "colour": repr(look.colour),
            "least_cell_um2": LEAST_CELL_UM2,
            "stain": pap_stain.VERSION,
            "figures": [quality.VERSION, smear_quality.VERSION],
            "merging": MERGING,
        }

    def _specimen(self, slide: SeriesEntry) -> Specimen:
        return Specimen(slides=(SlideReference(slide.study, (slide.series,)),), stain=self.stain)

    # The engines

    @contextmanager
    def _engines_of(self) -> Iterator["_Engines"]:
        opening = self.opening(self.desk.settings, tuple(model.folder for model in self._served))
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(opening) as engine:
            yield _Engines(portal, engine)

    def _cells(self, engines: "_Engines", seen: Seen) -> SiteCells:
        """The cells of a slide, and how surely each is NILM: by the slide model's own logits of it, or one minus the
        detector's score, as the model's source was weighed."""
        rule = self._models.rule
        if rule.pool != "mean" and rule.detector is not None:
            return SiteCells(seen.features_ND, lambda _: 1 - seen.scores_N)
        return SiteCells(seen.features_ND, lambda adapted_ND: self._nilm(adapted_ND, engines))

    def _nilm(self, features_ND: Features, engines: "_Engines") -> Weights:
        """(N,) p(NILM) of each cell alone."""
        slide, width = self._models.slide, features_ND.shape[1]
        most = slide.card.tiles[1] if slide.card.tiles else max(1, len(features_ND))
        found = [np.zeros(0)]  # of a slide without cells
        for start in range(0, len(features_ND), most):
            part_ND = features_ND[start : start + most]
            batch = {
                "features": part_ND[None],
                "mask": np.ones((1, len(part_ND)), np.bool_),
                "gamma": np.ones((1, width), np.float32),
                "beta": np.zeros((1, width), np.float32),
            }
            answer = engines.run(engines.engine.infer, slide.folder, batch)
            logits_1NC = answered(slide.folder, answer, "cell_logits", (1, len(part_ND), len(CLASSES)))
            found.append(softmax(logits_1NC[0].astype(np.float64))[:, NILM])
        return np.concatenate(found)


@dataclass(frozen=True, slots=True, eq=False)
class _SlideBySlide:
    """The cells of slides, read again from the work folder whenever they are asked for, a slide's at a time."""

    slides: Sequence[SeenSlide]
    cells: Callable[[Seen], SiteCells]

    def parts(self) -> Iterator[SiteCells]:
        for slide in self.slides:
            yield self.cells(slide.seen())


@dataclass(frozen=True, slots=True, eq=False)
class _Engines:
    """The engines, in an event loop beside us. `stopping`: we were interrupted."""

    portal: BlockingPortal
    engine: Engine
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self, work: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """What `work` gives. Where we are interrupted, it has ended when this raises: nothing reads a closed slide."""
        running = self.portal.start_task_soon(work, *arguments)
        try:
            return running.result()
        except KeyboardInterrupt:
            self.stopping.set()
            wait([running])
            raise


def _in_turns(look: Callable[[], T]) -> T:
    """What a look gives: frames round a slide's cells are known, and fetched, only after those of its windows, and each
    time another pull may need the cache's room. Raises FramesNotFetched after the last turn."""
    for _ in range(_TURNS):
        with suppress(FramesNotFetched):
            return look()
    raise FramesNotFetched(
        f"The frames of a slide were fetched {_TURNS} times, and were never all there when they were read. Give the "
        "frame cache more room (cache_bytes), and call the fit again: what was seen of the slides before it is kept."
    )


def _specimens(header: SlideHeader) -> frozenset[tuple[str, ...]]:
    """What tells that two slides are of one specimen: its UID; and, of one patient, the glass slide's identifier."""
    named: set[tuple[str, ...]] = set()
    if header.specimen_uid:
        named.add(("specimen", header.specimen_uid))
    if header.container_id:
        named.add(("container", header.patient_id or "", header.container_id))
    return frozenset(named)


def _counted(values: Sequence[str | None]) -> str:
    """How often each value is there, e.g. "77 (30 slides), not stated (2 slides)"."""
    counted = sorted(Counter("not stated" if value is None else value for value in values).items())
    return ", ".join(f"{value} ({count} slide{'s' if count > 1 else ''})" for value, count in counted)
