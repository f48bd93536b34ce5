"""What case a seed stands for: which subject, how it is damaged, what it is given to."""

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from tests.fuzz import bombs, targets
from tests.fuzz.corpus import object_names, slide_names
from tests.fuzz.damage import DAMAGES
from tests.fuzz.folders import PARTIAL_TRICKS, TRICKS
from tests.fuzz.judge import WALL_S, Task
from tests.fuzz.lies import LIES
from tests.fuzz.rogue import ANSWERS

_OBJECT_LIES = (
    "hostile-uid",
    "hostile-text",
    "bottomless",
    "endless",
    "deflate-bomb",
    "attributes-gone",
    "sequences-emptied",
    "wrong-numbers",
    "wrong-syntax",
)
_REPORT_LIES = (
    "hostile-text",
    "attributes-gone",
    "sequences-emptied",
    "wrong-numbers",
    "wrong-value",
    "wrong-type",
    "element-gone",
    "bits-in-header",
    "hostile-uid",
)
_CACHE_DAMAGES = ("file-gone", "no-file", "zeroed", "cut-anywhere", "bits-in-preamble")
_PACS_WALL_S = 10.0 + WALL_S
"""The timeouts that a pull may use up in a row, and what it may take beyond them."""
SEEDS_A_CAMPAIGN = 1_000_000
MUTATORS: tuple[tuple[str, str], ...] = (
    *(("slide", name) for name in (*DAMAGES, *LIES)),
    *(("slide", f"bomb-{name}") for name in bombs.NAMES),
    *(("slide", name) for name in TRICKS),
    *(("object", name) for name in (*DAMAGES, *_OBJECT_LIES)),
    *(("returned", name) for name in DAMAGES),
    *(("report", name) for name in _REPORT_LIES),
    *(("partial", name) for name in PARTIAL_TRICKS),
    *(("partial", name) for name in ("bits-in-header", "cut-at-boundary", "absurd-size", "frames-lie", "wrong-value")),
    *(("cache", name) for name in _CACHE_DAMAGES),
    *(("pacs", name) for name in ANSWERS),
)
"""All kinds of damage; seeds go round them, so that each occurs as often as any other."""


@dataclass(frozen=True, slots=True)
class Case:
    """One case: `damage` makes the folder `in` of the case, `task` reads it."""

    seed: int
    subject: str
    mutator: str
    source: str
    damage: Callable[[Path], None]
    task: Task
    wall_s: float = WALL_S


def case_of(seed: int, corpus: Path) -> Case:
    """The case that a seed stands for."""
    case = _case_of(seed, corpus)
    return replace(case, damage=_quietly(case.damage))


def _case_of(seed: int, corpus: Path) -> Case:
    subject, mutator = MUTATORS[seed % len(MUTATORS)]
    rng = Random(seed)
    if subject in ("object", "returned"):
        source = rng.choice(object_names(corpus))
        folder = "in" if subject == "object" else "returned"
        damage = _damage_object(rng, mutator, corpus / "objects" / source, folder)
        return Case(seed, subject, mutator, source, damage, targets.OBJECT if folder == "in" else targets.RETURNED)
    source = rng.choice(_slides(corpus, subject, mutator))
    slide = corpus / "slides" / source
    if subject == "pacs":
        return Case(
            seed,
            subject,
            mutator,
            source,
            lambda case: targets.copied(slide, case / "in"),
            targets.pull(rng, mutator),
            _PACS_WALL_S,
        )
    if subject == "cache":
        again = targets.pull_again(rng, mutator)
        return Case(
            seed, subject, mutator, source, lambda case: targets.copied(slide, case / "in"), again, _PACS_WALL_S
        )
    if subject == "report":
        return Case(seed, subject, mutator, source, _damage_slide(rng, mutator, slide), targets.REPORT)
    if subject == "partial":
        return Case(seed, subject, mutator, source, _damage_partial(rng, mutator, slide), targets.PARTIAL)
    return Case(seed, subject, mutator, source, _damage_slide(rng, mutator, slide), targets.SLIDE)


def _quietly(damage: Callable[[Path], None]) -> Callable[[Path], None]:
    """The same without what pydicom says about the values that are to be wrong."""

    def quiet(case: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            damage(case)

    return quiet


def _slides(corpus: Path, subject: str, mutator: str) -> list[str]:
    names = slide_names(corpus)
    if mutator in ("sparse-anywhere",):
        return ["sparse", "jpeg"]
    if mutator == "parts-lie":
        return ["parts", "jpeg"]
    if subject == "report":
        return ["cmu", "jpeg", "parts"]
    if mutator.startswith("bomb-") or subject in ("partial", "pacs", "cache"):
        return [name for name in names if name in ("jpeg", "jpeg2000", "sparse", "cmu-small")]
    return names


def _damage_slide(rng: Random, mutator: str, slide: Path) -> Callable[[Path], None]:
    def damage(case: Path) -> None:
        folder = case / "in"
        targets.copied(slide, folder)
        if mutator in TRICKS:
            TRICKS[mutator](rng, folder)
            return
        files = sorted(folder.glob("*.dcm"))
        chosen = files if rng.random() < 0.15 else [rng.choice(files)]
        for file in chosen:
            _damage_file(rng, mutator, file)

    return damage


def _damage_file(rng: Random, mutator: str, file: Path) -> None:
    if mutator in DAMAGES:
        file.write_bytes(DAMAGES[mutator](rng, bytearray(file.read_bytes())))
    elif mutator in LIES:
        LIES[mutator](rng, file)
    else:
        bombs.plant(rng, mutator.removeprefix("bomb-"), file)


def _damage_object(rng: Random, mutator: str, source: Path, folder: str) -> Callable[[Path], None]:
    """A damaged copy in `folder`; where that is not `in`, the undamaged one lies there."""

    def damage(case: Path) -> None:
        for name in {"in", folder}:
            (case / name).mkdir()
            shutil.copyfile(source, case / name / source.name)
        _damage_file(rng, mutator, case / folder / source.name)

    return damage


def _damage_partial(rng: Random, mutator: str, slide: Path) -> Callable[[Path], None]:
    def damage(case: Path) -> None:
        folder = case / "in"
        targets.write_partial(slide, folder)
        if mutator in PARTIAL_TRICKS:
            PARTIAL_TRICKS[mutator](rng, folder)
        else:
            _damage_file(rng, mutator, rng.choice(sorted(folder.glob("*.header.dcm"))))

    return damage
