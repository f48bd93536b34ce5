"""One case through its four steps: fetch, infer, report, deliver.

`CaseRun` is what the durable workflow and `pathserve analyze` both call. Each step may be repeated after a kill at any
moment: what a step has finished lies in the analysis's folder and is not done again.
"""

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway import __version__
from gateway.analyses.choices import Choices
from gateway.analyses.classification import TissueClassification
from gateway.analyses.fetched import Fetched, not_there
from gateway.analyses.identity import check_identity, check_one_patient
from gateway.analyses.pins import Pins
from gateway.analyses.protocols import options_of, protocol_named
from gateway.analyses.slide_half import SlideHalf, SlideOutcome, SlideTask
from gateway.archive.cache import FrameCache
from gateway.archive.protocol import Archive, SeriesEntry
from gateway.domain.analysis import Progress, Step
from gateway.domain.model import ModelCard, ModelVersion
from gateway.domain.order import Order
from gateway.domain.report import Finding, FindingKind, Picture, Report, ReportState, SlideReading, Software
from gateway.domain.tables import finding_code
from gateway.domain.uids import derive_uid
from gateway.inference import ModelRepository, TritonEngine
from gateway.operations.disk import disk_errors, sync_files, sync_folder, written_whole
from gateway.operations.errors import (
    Cancelled,
    ModelChanged,
    SlideError,
    SlideNotInArchive,
    StateError,
)
from gateway.operations.settings import Settings
from gateway.reports import SlideSource, picture, result_objects, write_all
from gateway.slides import Slide, TilePlan

_HALVES: dict[str, SlideHalf] = {"tissue-classification": TissueClassification()}
SCHEMA_VERSION = "1.1"
STATEMENT = "Research use, not a medical device. Preliminary: made by software, not signed by a person."
PICTURE_FILES = {"thumbnail": "thumbnail-{n}.jpg", "tissue-map": "tissue-map-{n}.png"}


class CaseRun:
    """One analysis at work in `folder`.

    `progress` is told how far the running step is; `cancelled` is asked between batches; `choices` says which models
    serve when the analysis starts, and `note_pins` is told which it was pinned to. The steps raise PathserveError only;
    `retryable` ones may be tried again.
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
    ) -> None:
        self.analysis_id = analysis_id
        self.order = order
        self.folder = folder
        self.artifacts = folder / "artifacts"
        self._settings = settings
        self._archive = archive
        self._progress = progress
        self._cancelled = cancelled
        self._choices = choices
        self._note_pins = note_pins
        self._protocol = protocol_named(order.protocol)
        self._options = options_of(self._protocol, order)
        self._half = _HALVES[order.protocol]
        self._repository = ModelRepository(settings.model_repository)

    async def fetch(self) -> dict[str, Any]:
        """Bring every slide of the order within reach; one that is not in the archive is noted and the others go on.

        The models that serve now are those of the analysis from here on. Raises ArchiveError (where no slide is there,
        the first one's reason), SlideError, ModelNotLoaded, ModelRefused, DiskFull, Cancelled.
        """
        return await asyncio.to_thread(self._fetch)

    def _fetch(self) -> dict[str, Any]:
        if not self._models_file.exists():
            self._pin()
        fetched: list[Fetched] = []
        missing: SlideNotInArchive | SlideError | None = None
        for index, specimen in enumerate(self.order.specimens):
            for reference in specimen.slides:
                try:
                    entries = self._archive.find_series(reference.study, reference.series)
                    fetched += [self._fetch_one(index, entry) for entry in entries]
                except (SlideNotInArchive, SlideError) as error:
                    missing = missing or error
                    fetched += not_there(index, reference, error)
        if missing is not None and not any(slide.files for slide in fetched):
            raise missing
        self._write("fetched.json", [slide.to_json(self._settings.state) for slide in fetched])
        return {"slides": len(fetched), "files": sum(len(slide.files) for slide in fetched)}

    def _fetch_one(self, specimen: int, entry: SeriesEntry) -> Fetched:
        series = self._archive.fetch(
            entry,
            FrameCache(self._settings.state / "frames", self._settings.cache_bytes),
            progress=lambda done, total: self._progress(Progress(Step.FETCH, done, total, "bytes")),
            cancelled=self._cancelled,
        )
        return Fetched(
            specimen=specimen, study=entry.study, series=entry.series, files=series.files, reason=None, detail=None
        )

    async def infer(self) -> dict[str, Any]:
        """Run the protocol's models over every slide, continuing after the tiles that are done.

        A slide that cannot be read is noted and the others go on; where none can, its error is raised. Raises
        SlideError, IdentityMismatch, InferenceError, DiskFull, Cancelled.
        """
        pins = await asyncio.to_thread(lambda: self._pins() or self._pin())
        fetched = await asyncio.to_thread(self._fetched)
        async with TritonEngine.open(self._settings, tuple(pins.folders.values())) as engine:
            with ExitStack() as slides:
                planned = await asyncio.to_thread(self._plan, pins, fetched, slides)
                total = sum(len(plan.rows_N) for _, plan in planned)
                before = 0
                for task, plan in planned:
                    await self._half.infer(
                        task, plan, engine, progress=self._tiles_done(before, total), cancelled=self._cancelled
                    )
                    before += len(plan.rows_N)
        return {"slides": len(planned), "tiles": total}

    def _tiles_done(self, before: int, total: int) -> Callable[[int], None]:
        return lambda done: self._progress(Progress(Step.INFER, before + done, total, "tiles"))

    def _plan(self, pins: Pins, fetched: list[Fetched], slides: ExitStack) -> list[tuple[SlideTask, TilePlan]]:
        planned: list[tuple[SlideTask, TilePlan]] = []
        unread: dict[str, list[str]] = {}
        first_error: SlideError | None = None
        tasks: list[SlideTask] = []

        def unreadable(series: str, error: SlideError) -> None:
            nonlocal first_error
            unread[series] = [error.reason, error.detail]
            first_error = first_error or error

        for slide in (slide for slide in fetched if slide.files):
            try:
                tasks.append(slides.enter_context(self._opened(pins, slide)))
            except SlideError as error:
                unreadable(slide.series, error)
        check_one_patient([task.slide.header for task in tasks])
        for task in tasks:
            if self._cancelled():
                raise Cancelled("The analysis was cancelled.")
            try:
                planned.append((task, self._half.plan(task)))
            except SlideError as error:
                unreadable(task.slide.header.series_uid, error)
        if not planned and first_error is not None:
            raise first_error
        self._write("unread.json", unread)
        return planned

    @contextmanager
    def _opened(self, pins: Pins, fetched: Fetched) -> Iterator[SlideTask]:
        """The slide of `fetched`, checked against the order's identifiers before any pixel is read."""
        specimen = self.order.specimens[fetched.specimen]
        with Slide.open(fetched.files) as slide:
            check_identity(self.order, specimen, slide.header)
            yield SlideTask(
                slide=slide,
                model=pins.folders[self._protocol.models[0]],
                card=self._card(pins),
                order=self.order,
                specimen=specimen,
                options=self._options,
                folder=self.folder / "tiles" / slide.header.series_uid,
            )

    async def report(self) -> dict[str, Any]:
        """Build the report once and write every encoding of it, all or nothing, to `folder/artifacts`.

        Where a model was changed since the tiles were computed, they are computed again, by what serves now. Raises
        DiskFull, SlideError, ModelChanged, Cancelled, and what `infer` raises.
        """
        if not self.artifacts.exists():
            if await asyncio.to_thread(self._pins) is None:
                await self.infer()
            await asyncio.to_thread(self._report)
        return {"artifacts": sorted(path.name for path in self.artifacts.iterdir())}

    def _report(self) -> None:
        if self._cancelled():
            raise Cancelled("The analysis was cancelled.")
        pins = self._pins()
        if pins is None:
            raise _changed()
        report, sources, pictures = self._build(pins)
        part = self.folder / "artifacts.part"
        with disk_errors():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            write_all(part, report, sources, pictures, segmentation_type=self._settings.segmentation_type)
            sync_files(part)
            part.rename(self.artifacts)
            sync_folder(self.folder)

    def _build(self, pins: Pins) -> tuple[Report, list[SlideSource], dict[str, bytes]]:
        unread: dict[str, list[str]] = json.loads((self.folder / "unread.json").read_text())
        outcomes: list[SlideOutcome] = []
        sources: list[SlideSource] = []
        readings: list[SlideReading] = []
        findings: list[Finding] = [*_changed_settings(self.order)]
        pictures: list[Picture] = []
        data: dict[str, bytes] = {}
        for number, fetched in enumerate(self._fetched(), 1):
            reason, detail = unread.get(fetched.series, [fetched.reason, fetched.detail])
            if reason is not None:
                readings.append(
                    SlideReading(
                        study=fetched.study,
                        series=fetched.series,
                        read=False,
                        reason=f"{reason}: {detail}",
                        container=self.order.specimens[fetched.specimen].container,
                    )
                )
                findings.append(
                    Finding(
                        kind=FindingKind.NOT_READ,
                        code=finding_code("slide-not-read"),
                        text=f"A slide of this order was not read: {detail}",
                        series=fetched.series or None,
                    )
                )
                continue
            with self._opened(pins, fetched) as task:
                outcome = self._half.outcome(task)
                sources.append(_source(task.slide, outcome))
            outcomes.append(outcome)
            readings.append(outcome.reading)
            findings += outcome.findings
            for role, encoded in outcome.pictures.items():
                file = PICTURE_FILES[role].format(n=number)
                pictures.append(picture(role, file, encoded, outcome.reading.series))
                data[file] = encoded
        exploratory = any(outcome.tissue is not None and outcome.tissue.exploratory for outcome in outcomes)
        report = Report(
            schema_version=SCHEMA_VERSION,
            analysis_id=self.analysis_id,
            protocol=self.order.protocol,
            state=ReportState.PRELIMINARY,
            issued=self._issued(),
            statement=STATEMENT if exploratory else f"{STATEMENT} {self._card(pins).intended_use.statement}",
            exploratory=exploratory,
            software=Software(
                name="pathserve",
                manufacturer="pathserve",
                version=__version__,
                device_uid=derive_uid("pathserve", f"device/{__version__}"),
            ),
            models=self._versions(pins),
            order=self.order,
            slides=tuple(readings),
            findings=tuple(findings),
            tissue=tuple(outcome.tissue for outcome in outcomes if outcome.tissue is not None),
            pictures=tuple(pictures),
            objects=result_objects(readings, sources),
        )
        return report, sources, data

    # The models

    @property
    def _models_file(self) -> Path:
        return self.folder / "models.json"

    def _pin(self) -> Pins:
        """Pin the analysis to what serves now: noted for whoever unloads old versions, and on disk.

        In this order: after a kill between the two it is pinned anew, and never uses what nobody knows of.
        """
        pins = Pins.choose(self._protocol.models, self._choices(), self._repository)
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

    def _card(self, pins: Pins) -> ModelCard:
        """The card of the protocol's first model. Raises ModelChanged where a pinned model changed meanwhile."""
        card = self._repository.card(pins.folders[self._protocol.models[0]])
        if not pins.hold(self._repository):
            raise _changed()
        return card

    def _versions(self, pins: Pins) -> tuple[ModelVersion, ...]:
        """The exact models behind the report, an ensemble's steps before the ensemble. Raises ModelChanged."""
        versions = tuple(self._repository.card(pin.folder).version for pin in pins.pins)
        if not pins.hold(self._repository):
            raise _changed()
        return versions

    async def deliver(self) -> dict[str, Any]:
        """Store the report's DICOM objects in the archive. Raises ArchiveError, DiskFull, Cancelled."""
        if self._cancelled():
            raise Cancelled("The analysis was cancelled.")
        objects = sorted(self.artifacts.glob("*.dcm"))
        if not objects:
            raise StateError("The report's files are gone from the state folder. Order the analysis again.")
        await asyncio.to_thread(self._archive.store, objects)
        self._progress(Progress(Step.DELIVER, len(objects), len(objects), "objects"))
        return {"objects": len(objects)}

    def _fetched(self) -> list[Fetched]:
        entries = json.loads((self.folder / "fetched.json").read_text())
        return [Fetched.from_json(entry, self._settings.state) for entry in entries]

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


def _source(slide: Slide, outcome: SlideOutcome) -> SlideSource:
    return SlideSource(
        series=outcome.reading.series,
        levels=tuple(slide.source_dataset(index) for index in range(len(slide.levels))),
        read=outcome.level,
        tiles=outcome.tiles,
    )


def _changed() -> ModelChanged:
    return ModelChanged("A model of this analysis was changed while it ran; its tiles are computed anew.")


def _changed_settings(order: Order) -> list[Finding]:
    return [
        Finding(
            kind=FindingKind.SETTING,
            code=finding_code("setting-changed"),
            text=f"The setting {name} was changed to {value} for this order.",
        )
        for name, value in order.settings
    ]
