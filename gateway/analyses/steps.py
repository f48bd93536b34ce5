"""One case through its three steps: fetch, infer, report. (What then leaves the house is the outbox's: `sender.py`.)

`CaseRun` is what the durable workflow and `pathserve analyze` both call. Each step may be repeated after a kill at any
moment: what a step has finished lies in the analysis's folder and is not done again.
"""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from gateway.analyses.case_report import Built, build_report, source_of
from gateway.analyses.classification import TissueClassification
from gateway.analyses.fetched import Fetched, each_readable
from gateway.analyses.identity import Read, check_identity, check_one_patient
from gateway.analyses.ledger.choices import Choices
from gateway.analyses.ledger.revisions import HEADERS
from gateway.analyses.metrics import count_screenings
from gateway.analyses.pins import Pins
from gateway.analyses.protocols import options_of, protocol_named
from gateway.analyses.pull import CasePull
from gateway.analyses.screening import CervicalScreening
from gateway.analyses.segmentation import Segmentation
from gateway.analyses.slide_classes import WholeSlideClassification
from gateway.analyses.slide_half import Plan, ServedModel, SlideHalf, SlideOutcome, SlideTask
from gateway.archive.cache import FrameCache
from gateway.archive.protocol import Archive
from gateway.domain.analysis import Progress, Step
from gateway.domain.model import ModelVersion
from gateway.domain.order import Order
from gateway.inference import ModelRepository, TritonEngine
from gateway.operations.disk import disk_errors, sync_files, sync_folder, written_whole
from gateway.operations.errors import Cancelled, FramesNotFetched, ModelChanged, RowsOutdated, SlideError
from gateway.operations.settings import Settings
from gateway.reports import SlideSource, write_all
from gateway.reports import keep as keep_headers
from gateway.slides import Slide

_HALVES: dict[str, SlideHalf[Any]] = {
    "tissue-classification": TissueClassification(),
    "slide-classification": WholeSlideClassification(),
    "segmentation": Segmentation(),
    "cervical-screening": CervicalScreening(),
}

T = TypeVar("T")


class CaseRun:
    """One analysis at work in `folder`.

    `progress` is told how far the running step is; `cancelled` is asked between batches; `choices` says which models
    serve when the analysis starts, and `note_pins` is told which it was pinned to. `released` gives the digests of the
    differences between order and slides that a person has released; None where nobody ordered, so that all that is
    compared is whether the slides are one patient's. `run` counts up with every retry by
    a person. The steps raise PathserveError only; `retryable` ones may be tried again.
    """

    def __init__(
        self,
        analysis_id: str,
        order: Order,
        folder: Path,
        *,
        settings: Settings,
        archive: Archive,
        progress: Callable[[Progress], None] = lambda progress: None,
        cancelled: Callable[[], bool] = lambda: False,
        choices: Callable[[], Choices] = Choices,
        note_pins: Callable[[Pins], None] = lambda pins: None,
        released: Callable[[], Collection[str]] | None = frozenset,
        run: int = 1,
    ) -> None:
        self.analysis_id = analysis_id
        self.order = order
        self.folder = folder
        self.artifacts = folder / "artifacts"
        self._settings = settings
        self._archive = archive
        self._cache = FrameCache(settings.state / "cache", settings.cache_bytes)
        self._progress = progress
        self._cancelled = cancelled
        self._choices = choices
        self._note_pins = note_pins
        self._released = released
        self._run = run
        self._protocol = protocol_named(order.protocol).asked(order)
        self._options = options_of(self._protocol, order)
        self._half = _HALVES[order.protocol]
        self._repository = ModelRepository(settings.model_repository)

    async def fetch(self) -> dict[str, Any]:
        """Bring what will be read of every slide into the frame cache; one that cannot be read is noted and the others
        go on (`CasePull.run`).

        The models that serve now are those of the analysis from here on. Raises what `CasePull.run` raises,
        ModelNotLoaded, ModelRefused, ModelsUnfit.
        """
        try:
            return await asyncio.to_thread(self._fetch)
        except FramesNotFetched:  # another analysis needed the room, or fetched the same slide in another way
            return await asyncio.to_thread(self._fetch)

    def _fetch(self) -> dict[str, Any]:
        pins = self._pins() or self._pin()
        pull = CasePull(
            self.order,
            self._archive,
            self._cache,
            opened=lambda slide: self._opened(pins, slide),
            check=self._check,
            plan=self._half.plan,
            progress=lambda done, total: self._progress(Progress(Step.FETCH, done, total, "bytes")),
            cancelled=self._cancelled,
        )
        slides = pull.run()
        self._note(slides)
        return {"slides": len(slides), "files": sum(len(slide.files) for slide in slides)}

    async def infer(self) -> dict[str, Any]:
        """Run the protocol's models over every slide, continuing after the tiles that are done.

        What has left the cache since it was fetched, and what another model needs of the slides where one was changed,
        is fetched first. Raises SlideError, InferenceError and what `fetch` raises.
        """
        if await asyncio.to_thread(self._pins) is None:
            await self.fetch()
        return await self._with_frames(self._infer)

    async def _with_frames(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do what needs the slides' frames; where some are not in the cache (any more) fetch them, and do it again."""
        try:
            return await work()
        except FramesNotFetched:
            await self.fetch()
            return await work()

    async def _infer(self) -> dict[str, Any]:
        pins = await asyncio.to_thread(self._pins)
        if pins is None:
            raise _changed()
        fetched = await asyncio.to_thread(self._fetched)
        with ExitStack() as held:
            await asyncio.to_thread(held.enter_context, self._held(fetched))
            planned = await asyncio.to_thread(self._plan, pins, fetched, held)
            total = sum(len(plan) for _, plan in planned)
            before = 0
            async with TritonEngine.open(self._settings, tuple(pins.folders.values())) as engine:
                unfetched: FramesNotFetched | None = None
                for task, plan in planned:
                    try:
                        await self._half.infer(
                            task, plan, engine, progress=self._tiles_done(before, total), cancelled=self._cancelled
                        )
                    except FramesNotFetched as error:  # the others go on, so that one more turn brings it all
                        unfetched = error
                    before += len(plan)
                if unfetched is not None:
                    raise unfetched
        return {"slides": len(planned), "tiles": total}

    def _tiles_done(self, before: int, total: int) -> Callable[[int], None]:
        return lambda done: self._progress(Progress(Step.INFER, before + done, total, "tiles"))

    def _plan(self, pins: Pins, fetched: list[Fetched], opened: ExitStack) -> list[tuple[SlideTask, Plan]]:
        planned: list[tuple[SlideTask, Plan]] = []

        def plan(slide: Fetched) -> Fetched:
            if self._cancelled():
                raise Cancelled("The analysis was cancelled.")
            task = opened.enter_context(self._opened(pins, slide))
            planned.append((task, self._half.plan(task)))
            return slide

        slides = each_readable(fetched, plan)
        self._check([(task.specimen, task.slide.header) for task, _ in planned])
        if slides != fetched:
            self._note(slides)
        return planned

    @contextmanager
    def _opened(self, pins: Pins, fetched: Fetched) -> Iterator[SlideTask]:
        specimen = self.order.specimens[fetched.specimen]
        with _open(fetched.files) as slide:
            yield SlideTask(
                slide=slide,
                models=self._served(pins),
                order=self.order,
                specimen=specimen,
                options=self._options,
                folder=self.folder / "tiles" / slide.header.series_uid,
                state_folder=self._settings.state,
                specimen_codes=self._settings.specimen_codes,
                run=self._run,
            )

    def _check(self, slides: Sequence[Read]) -> None:
        """Raise IdentityMismatch where these are not the slides of the order, before any pixel of them is read."""
        if self._released is None:
            check_one_patient([header for _, header in slides])
        else:
            check_identity(self.order, slides, self._released())

    def _held(self, slides: Sequence[Fetched]) -> AbstractContextManager[None]:
        """The slides' files, kept in the cache. Raises FramesNotFetched where one has left it."""
        return self._cache.hold([file for slide in slides for file in slide.files])

    async def report(self) -> dict[str, Any]:
        """Build the report once and write every encoding of it, all or nothing, to `folder/artifacts`.

        Where a model was changed since the tiles were computed, or an earlier release computed them, they are computed
        again, by what serves now. Raises DiskFull, SlideError, ModelChanged, Cancelled, and what `infer` raises.
        """
        if not self.artifacts.exists():
            if await asyncio.to_thread(self._pins) is None:
                await self.infer()
            try:
                await self._with_frames(lambda: asyncio.to_thread(self._report))
            except RowsOutdated:
                await self.infer()
                await self._with_frames(lambda: asyncio.to_thread(self._report))
        return {"artifacts": sorted(path.name for path in self.artifacts.iterdir())}

    def _report(self) -> None:
        if self._cancelled():
            raise Cancelled("The analysis was cancelled.")
        pins = self._pins()
        if pins is None:
            raise _changed()
        fetched = self._fetched()
        with self._held(fetched):
            built = self._build(pins, fetched)
        part = self.folder / "artifacts.part"
        with disk_errors():
            self._keep_headers(built.sources)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            write_all(
                part, built.report, built.sources, built.pictures, segmentation_type=self._settings.segmentation_type
            )
            sync_files(part)
            part.rename(self.artifacts)
            sync_folder(self.folder)
        count_screenings(built.report.screenings)

    def _keep_headers(self, sources: Sequence[SlideSource]) -> None:
        """What a later revision is made from: there before the artifacts are, whole, and never changed after them."""
        headers = self.folder / HEADERS
        shutil.rmtree(headers, ignore_errors=True)
        headers.mkdir()
        keep_headers(headers, [source.image for source in sources])
        sync_files(headers)

    def _build(self, pins: Pins, slides: list[Fetched]) -> Built:
        def read(fetched: Fetched) -> tuple[SlideOutcome, SlideSource]:
            with self._opened(pins, fetched) as task:
                outcome = self._half.outcome(task)
                return outcome, source_of(task.slide, outcome)

        return build_report(
            self.analysis_id,
            self.order,
            slides,
            read,
            card=self._served(pins)[-1].card,
            models=lambda: self._versions(pins),
            issued=self._issued(),
        )

    # The models

    @property
    def _models_file(self) -> Path:
        return self.folder / "models.json"

    def _pin(self) -> Pins:
        """Pin the analysis to what serves now: noted for whoever unloads old versions, and on disk.

        In this order: after a kill between the two it is pinned anew, and never uses what nobody knows of.
        """
        pins = Pins.choose(self._protocol, self._choices(), self._repository)
        self._note_pins(pins)
        self._write(self._models_file.name, pins.to_json())
        return pins

    def _pins(self) -> Pins | None:
        """The analysis's pins. None where it has none yet, or where a pinned version vanished or changed: then it is
        pinned anew and every tile computed anew (those on disk belong to an engine), so that versions never mix."""
        if not self._models_file.exists():
            return None
        with disk_errors():
            pins = Pins.from_json(json.loads(self._models_file.read_text()))
        return pins if pins.hold(self._repository) else None

    def _served(self, pins: Pins) -> tuple[ServedModel, ...]:
        """The protocol's models. Raises ModelChanged where a pinned one changed meanwhile."""
        models = tuple(
            ServedModel(folder=folder, card=self._repository.card(folder), contract=self._repository.contract(folder))
            for folder in pins.folders.values()
        )
        if not pins.hold(self._repository):
            raise _changed()
        return models

    def _versions(self, pins: Pins) -> tuple[ModelVersion, ...]:
        """The exact models behind the report, an ensemble's steps before the ensemble. Raises ModelChanged."""
        versions = tuple(self._repository.card(pin.folder).version for pin in pins.pins)
        if not pins.hold(self._repository):
            raise _changed()
        return versions

    def _fetched(self) -> list[Fetched]:
        entries = json.loads((self.folder / "fetched.json").read_text())
        return [Fetched.from_json(entry, self._settings.state) for entry in entries]

    def _note(self, slides: Sequence[Fetched]) -> None:
        self._write("fetched.json", [slide.to_json(self._settings.state) for slide in slides])

    def _issued(self) -> datetime:
        """The report's time, fixed when it is first built, so that a repeated step builds the same report."""
        path = self.folder / "issued.json"
        if not path.exists():
            self._write("issued.json", datetime.now(UTC).replace(microsecond=0).isoformat())
        return datetime.fromisoformat(json.loads(path.read_text()))

    def _write(self, name: str, value: Any) -> None:
        with disk_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            with written_whole(self.folder / name) as out:
                out.write(json.dumps(value, indent=1).encode())


def _open(files: Sequence[Path]) -> Slide:
    try:
        return Slide.open(files)
    except SlideError:
        if all(file.exists() for file in files):
            raise
        # Whoever else fetches this slide may bring an instance whole that was there in part.
        raise FramesNotFetched("A file of the slide is no longer where it was fetched: it is fetched again.") from None


def _changed() -> ModelChanged:
    return ModelChanged("A model of this analysis was changed while it ran; its tiles are computed anew.")
