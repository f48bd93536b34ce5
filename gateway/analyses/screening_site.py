"""The state of a slide's site as an analysis uses it: chosen when its models first run, and copied beside its rows, so
that the report is built with the state that was used, whatever is signed or retired meanwhile. A retry by a person
chooses anew, and so does a slide whose header, or whose order, now says that it is from elsewhere."""

import json
from dataclasses import dataclass
from typing import Self

from gateway.analyses.screening_models import ScreeningModels
from gateway.analyses.sites import Origin, SiteStore, signed_state, site_of
from gateway.analyses.slide_half import SlideTask
from gateway.domain.tables import stain_name
from gateway.operations.disk import disk_errors, written_whole
from gateway.operations.errors import RowsOutdated
from gateway.slides.site_state import SiteState, SiteStateInvalid, Source, not_commissioned

_FILE = "site.json"


@dataclass(frozen=True, slots=True, eq=False)
class SiteUsed:
    """A state and who signed it; nobody where the site was not commissioned, which `other_model` may explain: all its
    signed states were fitted to another model."""

    state: SiteState
    signed_by: str | None = None
    other_model: bool = False

    @classmethod
    def chosen(cls, task: SlideTask, models: ScreeningModels) -> Self:
        """The state that this run of the analysis uses, chosen where it has none yet, or one of another model or
        origin. Raises SiteStateInvalid (a site's file is damaged), StateError."""
        if (used := cls._load(task, models.source)) is not None:
            return used
        used = cls._serving(task, models.source)
        used._save(task)
        return used

    @classmethod
    def of_task(cls, task: SlideTask, models: ScreeningModels) -> Self:
        """The state that was used. Raises RowsOutdated where there is none."""
        used = cls._load(task, models.source)
        if used is None:
            raise RowsOutdated("The slide was not read with a state of its site for this model. It is read anew.")
        return used

    @classmethod
    def _serving(cls, task: SlideTask, source: Source) -> Self:
        if task.state_folder is None:
            return cls(not_commissioned("unknown", source))
        site = site_of(task.state_folder, task.slide.header, _stain(task))
        try:
            signed = signed_state(task.state_folder, site, source)
        except SiteStateInvalid:
            # Raised again where it is a file that is damaged.
            if not any(version.usable for version in SiteStore(task.state_folder).versions(site)):
                raise
            return cls(not_commissioned(site, source), other_model=True)
        if signed is None:
            return cls(not_commissioned(site, source))
        return cls(signed.state, signed.signature.by)

    def _save(self, task: SlideTask) -> None:
        path = task.folder / _FILE
        said = {
            **_chosen_for(task),
            "signed_by": self.signed_by,
            "other_model": self.other_model,
            "state": self.state.to_bytes().decode(),
        }
        with disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as out:
                out.write(json.dumps(said, sort_keys=True).encode())

    @classmethod
    def _load(cls, task: SlideTask, source: Source) -> Self | None:
        """None where there is none, or it is damaged, or belongs to another model, run or origin."""
        path = task.folder / _FILE
        if not path.exists():
            return None
        try:
            with disk_errors():
                said = json.loads(path.read_bytes())
            state = SiteState.from_bytes(said["state"].encode())
            same = state.source_sha256 == source.digest and _chosen_for(task).items() <= said.items()
            return cls(state, said["signed_by"], said["other_model"]) if same else None
        except (SiteStateInvalid, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            return None


def _stain(task: SlideTask) -> str | None:
    return task.specimen.stain or stain_name(task.slide.header.stains)


def _chosen_for(task: SlideTask) -> dict[str, object]:
    """What a state was chosen for: the run, and the words by which the slide's site is found."""
    return {"run": task.run, "origin": Origin.of(task.slide.header, _stain(task)).name}
