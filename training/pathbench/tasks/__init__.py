"""The bench's tasks, as data: a card each, named in registry.toml; `kind` says which protocol fills it.

A new task is one card and one line. A new kind is a module of `training.pathbench.protocols` with `evaluate`, and a
line in KINDS.
"""

from functools import cache
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.errors import TaskInvalid
from training.runs import parse_card, read_toml

FOLDER = Path(__file__).parent
Kind = Literal["tile", "slide", "segmentation", "survival", "vqa", "report"]
KINDS: dict[str, str] = {
    kind: f"training.pathbench.protocols.{kind}" for kind in ("tile", "slide", "segmentation", "survival")
}
"""Kinds that have a protocol. Answers to questions and report generation have none, and stand on no board."""
PROBES: dict[str, tuple[str, ...]] = {
    "tile": ("linear", "knn", "retrieval"),
    "slide": ("abmil", "transmil", "mean"),
    "segmentation": ("linear",),
    "survival": ("nll",),
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Composition(_Part):
    """Bags put together from single tiles of one part of the split, by seed: the truth is known, the slide is not real.

    Half of the bags hold none of `target`'s tiles, the others a share out of `shares`; `tiles` are least and greatest.
    """

    target: str
    shares: tuple[float, ...]
    tiles: tuple[int, int]
    bags: tuple[int, int, int] = Field(description="training, validation, test")


class TaskCard(_Part):
    """One task. `classes` joins the set's classes under coarser names; `limit` takes at most so many items of each
    class and group, by seed; `bag` says what a slide is: a composition, or all items of one "group" or "image";
    `windows` cuts a segmentation image into so many squares a side, to give small networks a finer grid."""

    title: str
    kind: Kind
    organ: str
    dataset: str = ""
    classes: dict[str, tuple[str, ...]] = {}
    cohorts: tuple[str, ...] = ()
    external: tuple[str, ...] = ()
    limit: int | None = Field(default=None, gt=0)
    bag: Composition | Literal["group", "image"] | None = None
    windows: int = Field(default=1, gt=0)
    cancer: str = ""
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.kind == "survival" and not self.cancer:
            raise ValueError("a survival task names its cancer")
        if self.kind in ("tile", "slide", "segmentation") and not self.dataset:
            raise ValueError("this kind of task names its dataset")
        if (self.kind == "slide") != (self.bag is not None):
            raise ValueError("a slide task, and no other, says what its bags are")
        return self


def registered(folder: Path = FOLDER) -> tuple[str, ...]:
    """The ids, in the registry's order. Raises RecipeInvalid."""
    return tuple(read_toml(folder / "registry.toml"))


@cache
def read_task(task_id: str, folder: Path = FOLDER) -> TaskCard:
    """A registered task's card. Raises TaskInvalid where there is none, or none that is valid and has a protocol."""
    registry = read_toml(folder / "registry.toml")
    if task_id not in registry:
        raise TaskInvalid(f"There is no task {task_id} in the registry. Its ids are {', '.join(registry)}.")
    card = parse_card(TaskCard, folder / str(registry[task_id]), f"The card of the task {task_id}", TaskInvalid)
    if card.kind not in KINDS:
        raise TaskInvalid(f"The task {task_id} is of the kind {card.kind}, which no protocol fills yet.")
    return card
