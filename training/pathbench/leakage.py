"""What an encoder has learned from, against what it is tested on.

PathBench (arXiv 2505.20202) rests on it that no tested slide was in any encoder's pre-training; here that is checked.

Our own encoders are judged by group: their run's manifest, and that of every run it starts from, says which groups and
pictures were seen. Others' encoders have no such manifest and are judged by the public sets that they name, and by what
they inherit from. `clean` is what the evidence says, `overlap` where it says otherwise, `unknown` where there is none.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from training.data.dataset import PATIENT_UNKNOWN, Dataset
from training.data.hashes import JOIN_BITS, SAME_IMAGE_BITS, near_pairs
from training.data.seen import Seen
from training.data.split import Split
from training.errors import LeakageRefused, RunInvalid
from training.pathbench.encoders import read_card
from training.runs import Run, find_run

Status = Literal["clean", "overlap", "unknown"]
Finding = tuple[Literal["overlap", "unknown"], str]

OPEN_ENDED = ("openpath", "quilt-1m", "pathasst")
"""Sets gathered from the open web: they may hold any public image. What a card calls undisclosed is treated alike."""

_TCGA = re.compile(r"TCGA-\w{2}-\w{4}", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Leakage:
    """The judgement, and a sentence for everything that speaks against `clean`."""

    status: Status
    reasons: tuple[str, ...] = ()


class Learner(Protocol):
    """What of an encoder is judged. pretraining: public sets that it names; run: the recipe of an encoder of ours."""

    @property
    def pretraining(self) -> Sequence[str]: ...
    @property
    def inherits_from(self) -> Sequence[str]: ...
    @property
    def run(self) -> str | None: ...
    @property
    def random(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Origin:
    """A Learner of its own: what an encoder's card says."""

    pretraining: tuple[str, ...] = ()
    inherits_from: tuple[str, ...] = ()
    run: str | None = None
    random: bool = False


def of_card(identifier: str) -> Origin:
    """What the card of a registered encoder says. Raises what `read_card` raises."""
    card = read_card(identifier)
    return Origin(card.pretraining, card.inherits_from, card.weights.run)


@dataclass(frozen=True, slots=True, eq=False)
class _Tested:
    """The validation and test items of a task: what no encoder on the main board may have seen."""

    dataset: Dataset
    split: Split
    index_K: np.ndarray

    @property
    def names(self) -> set[str]:
        return {name.casefold() for name in (self.dataset.name, *self.dataset.known_as)}


def status(learner: Learner, dataset: Dataset, split: Split, lookup: Callable[[str], Learner] = of_card) -> Leakage:
    """Whether the encoder, or anything it inherits from, has seen a group or picture of the validation or test part.

    `lookup` gives the encoders that it inherits from. Raises DataMissing, and what `lookup` raises.
    """
    if learner.random:
        return Leakage("clean")
    tested = _Tested(dataset, split, np.flatnonzero(split.parts_N != "train"))
    found = sorted(_judge(learner, "it", tested, lookup, set()), key=lambda finding: finding[0])  # overlap first
    return Leakage(found[0][0] if found else "clean", tuple(dict.fromkeys(reason for _, reason in found)))


def board(leakage: Leakage, dataset: Dataset) -> Literal["main", "flagged"]:
    """The main board takes clean encoders on sets whose groups are known; all else is flagged."""
    return "main" if leakage.status == "clean" and dataset.grouping != PATIENT_UNKNOWN else "flagged"


def require_disjoint(dataset: Dataset, split: Split) -> None:
    """Raises LeakageRefused where a group, a file or a near-duplicate picture stands in two parts of a split."""
    for what, names_N in (
        ("group", dataset.groups_N),
        ("image", np.array([source.file for source in dataset.sources])),
    ):
        both = _in_two_parts(names_N, split.parts_N)
        if both:
            raise LeakageRefused(
                f"The split of {dataset.name} has {len(both)} {what}(s) in two parts, {both[0]} among them. "
                "Split by group again."
            )
    hashes_N = dataset.hashes()
    hashes_U, first_U = np.unique(hashes_N, return_index=True)
    parts_U = split.parts_N[first_U]
    pairs = near_pairs(hashes_U, hashes_U, JOIN_BITS)
    across = pairs[parts_U[pairs[:, 0]] != parts_U[pairs[:, 1]]]
    same = _in_two_parts(hashes_N, split.parts_N)
    if len(across) or same:
        count = len(np.unique(np.sort(across, axis=1), axis=0)) + len(same)
        raise LeakageRefused(
            f"The split of {dataset.name} has {count} pair(s) of near-duplicate images in two parts. "
            "Join near-duplicates into one group and split again."
        )


def _judge(
    learner: Learner,
    who: str,
    tested: _Tested,
    lookup: Callable[[str], Learner],
    judged: set[str],
) -> Iterator[Finding]:
    """What speaks against an encoder and all that it inherits from; each run and encoder in `judged` once."""
    yield from _judge_sets(learner.pretraining, who, tested)
    if learner.run is not None:
        yield from _judge_run(learner.run, None, tested, judged)
    for identifier in learner.inherits_from:
        if identifier not in judged:
            judged.add(identifier)
            yield from _judge(lookup(identifier), identifier, tested, lookup, judged)


def _judge_sets(names: Sequence[str], who: str, tested: _Tested) -> Iterator[Finding]:
    """Public sets by name: one that holds the task's images overlaps; a vague one leaves it open."""
    for name in names:
        if name.casefold() in tested.names:
            yield "overlap", f"{who} was trained on {name}, which holds the images of {tested.dataset.name}"
        elif "undisclosed" in name.casefold() or name.casefold() in OPEN_ENDED:
            yield "unknown", f"{who} was trained on sets that are not known in full ({name})"


def _judge_run(recipe: str, sha256: str | None, tested: _Tested, judged: set[str]) -> Iterator[Finding]:
    """A run of ours by its manifest, and every run that it started from."""
    key = f"run {recipe} {sha256}"
    if key in judged:
        return
    judged.add(key)
    try:
        run = find_run(recipe)
    except RunInvalid:
        yield "unknown", f"the run {recipe}, which it comes from, is not there to say what it has seen"
        return
    if sha256 is not None and run.weights_sha256 != sha256:
        yield "unknown", f"the run {recipe} was trained again since this encoder started from it"
        return
    yield from _judge_manifest(run, tested)
    yield from _judge_sets([entry["trained_on"] for entry in run.manifest["pretraining"]], recipe, tested)
    for parent in run.manifest["starts_from"].values():
        yield from _judge_run(parent["recipe"], parent["weights_sha256"], tested, judged)


def _judge_manifest(run: Run, tested: _Tested) -> Iterator[Finding]:
    """By group: those the manifest names, and those of the files it lists (runs of before groups were written down)."""
    dataset, split, index_K = tested.dataset, tested.split, tested.index_K
    seen, files = Seen.read(run.manifest), _files(run.manifest["data"])
    by_set = {name: set(groups) for name, groups in seen.groups.items()}
    people = {person for groups in by_set.values() for group in groups if (person := _person(group))}
    seen_N = np.array(
        [
            source.file in files
            or source.sha256 in files
            or group in by_set.get(source.set, ())
            or _person(group) in people
            for source, group in zip(dataset.sources, dataset.groups_N.tolist(), strict=True)
        ]
    )
    shared = np.intersect1d(split.groups_N[seen_N], split.groups_N[index_K])
    if len(shared):
        of = len(np.unique(split.groups_N[index_K]))
        seen_of = f"{len(shared)} of {of} groups ({dataset.grouping})"
        yield "overlap", f"{run.name} has seen {seen_of} that {dataset.name} is tested on"
    hashes_S = np.array([int(text, 16) for text in seen.hashes], np.uint64)
    alike = near_pairs(np.unique(dataset.hashes()[index_K]), hashes_S, SAME_IMAGE_BITS)
    if len(alike):
        count = len(np.unique(alike[:, 0]))
        yield "overlap", f"{run.name} has seen {count} picture(s) that {dataset.name} is tested on, or near-duplicates"


def _files(entries: Sequence[Mapping[str, Any]]) -> set[str]:
    """Paths and digests of the files that a manifest lists."""
    return {entry[key] for entry in entries for key in ("file", "sha256")}


def _person(group: str) -> str | None:
    """The patient of a TCGA barcode, which is the same in every set; None for a set's own groups."""
    found = _TCGA.match(group)
    return found.group().upper() if found else None


def _in_two_parts(names_N: np.ndarray, parts_N: np.ndarray) -> list[str]:
    """The names that occur in more than one part, sorted."""
    pairs = np.unique(np.column_stack([names_N.astype(str), parts_N]), axis=0)
    names, counts = np.unique(pairs[:, 0], return_counts=True)
    return [str(name) for name in names[counts > 1]]
