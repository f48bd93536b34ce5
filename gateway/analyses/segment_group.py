"""The prompts of one slide that are answered at one resolution, and where their masks lie."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace

import numpy as np
import numpy.typing as npt

from gateway.analyses.blending import presence_rules
from gateway.analyses.instances import Splitting, splitting_of
from gateway.analyses.mask_file import MaskFile
from gateway.analyses.mask_store import StoredMasks
from gateway.analyses.object_splitting import Splitter
from gateway.analyses.prompt_texts import Asked, asked
from gateway.analyses.segment_plan import SegmentPlan
from gateway.analyses.slide_half import SlideTask
from gateway.domain.model import PresenceRule
from gateway.operations.errors import RowsOutdated
from gateway.slides import quality
from gateway.slides.windows import WindowPlan, inside

_VERSION = 3
"""Of how windows are blended to masks and masks split into objects: raised with every change of the rules or of their
order, so that no file is begun by one and ended by another."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Group:
    """The `prompts`, in the order's order, and the windows that all of them are answered in.

    `mpp`: the resolution that the model's card says for them. `read_mm2`: the tissue under the windows and in the
    region of the order.
    """

    task: SlideTask
    mpp: float
    prompts: tuple[Asked, ...]
    plan: WindowPlan
    read_mm2: float

    @property
    def presence(self) -> tuple[PresenceRule, ...]:
        """What lets a window speak for each prompt: the card's rule for its level, its threshold or the order's own.
        Raises ModelRefused."""
        rules = presence_rules(self.task.card, [each.triple for each in self.prompts])
        changed = self.task.options["presence.min_probability"]
        return rules if changed is None else tuple(replace(rule, threshold=changed) for rule in rules)

    @property
    def splittings(self) -> dict[int, Splitting]:
        """How the objects of the prompts that have any are told apart, by their number here."""
        every = (splitting_of(each.triple, self.plan.mpp) for each in self.prompts)
        return {number: splitting for number, splitting in enumerate(every) if splitting is not None}

    @property
    def masks(self) -> StoredMasks:
        """Where they lie, and to what they belong: one of these changed, and they are computed anew."""
        order = self.task.order
        versions = [[model.card.version.name, model.card.version.engine_sha256] for model in self.task.models]
        return StoredMasks(
            series=self.task.slide.header.series_uid,
            level=self.plan.level,
            pixel_px=self.plan.pixel_px,
            rows=self.plan.height_px,
            columns=self.plan.width_px,
            indices=tuple(each.index for each in self.prompts),
            path=self.task.folder / f"masks-{self.mpp:g}.db",
            belongs_to={
                "plan": self.plan.digest,
                "models": versions,
                "prompts": [each.triple.text for each in self.prompts],
                "region": repr(order.region),
                "presence": [astuple(rule) for rule in self.presence],
                "figures": quality.VERSION,
                "rules": _VERSION,
            },
        )

    @contextmanager
    def finished(self) -> Iterator[MaskFile]:
        """The file of the masks. Raises RowsOutdated where they belong to anything else, or are not all there."""
        with self.masks.opened() as file:
            if file.windows != len(self.plan) or not Splitter(file, self.plan, self.splittings).finished:
                raise RowsOutdated("The masks of the slide are not complete. The rest is computed.")
            yield file

    def inside(self, rows: slice, columns: slice) -> npt.NDArray[np.bool_]:
        """Which of these mask pixels the order asks for."""
        region = self.task.order.region
        assert region is not None
        return inside(self.plan, region, rows, columns)


def groups_of(task: SlideTask, plan: SegmentPlan) -> tuple[Group, ...]:
    """The order's prompts by the resolution that they are answered at, finest first."""
    prompts = asked(task.order.prompts, task.card)
    return tuple(
        Group(
            task=task,
            mpp=mpp,
            plan=windows,
            read_mm2=plan.read_mm2[mpp],
            prompts=tuple(each for each in prompts if task.card.mpp_by_level[each.triple.level] == mpp),
        )
        for mpp, windows in plan.windows.items()
    )
