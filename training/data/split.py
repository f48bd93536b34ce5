"""Held-out splits: by group, balanced over the finest labels, the same for every task that is made of one set.

Near-duplicate images (perceptual hash) are joined into one group first. Of many random orders in which groups are dealt
out, the one is kept whose parts come nearest to SHARES in every stratum; the seed is fixed, so a set has one split.

    python -m training.data.split NAME > TABLE.csv

prints a set's split as a table in the columns that `python -m training.pathbench check-split` reads.
"""

import argparse
import csv
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from training import command
from training.data.dataset import NAMES, Dataset, load
from training.data.hashes import JOIN_BITS, joined, near_pairs
from training.errors import SplitInvalid

PARTS = ("train", "validation", "test")
SHARES = (0.5, 0.2, 0.3)
SEED = 2026
_GROUP_DEALS = 6000
"""Groups dealt out in all: few groups are tried in many orders, many groups in a few."""

COLUMNS = ("dataset", "patient", "case", "slide", "class", "label", "split", "site", "source_licence")


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """parts_N: (N,) str, each item's part; groups_N: (N,) str, the set's groups with near-duplicates joined;
    sha256: over every item's file, box, label, group and part, so that results of another split are told apart."""

    dataset: str
    parts_N: np.ndarray
    groups_N: np.ndarray
    sha256: str

    def indices(self, part: str) -> np.ndarray:
        """(K,) int64: the items of a part, rising."""
        return np.flatnonzero(self.parts_N == part)


def held_out(dataset: Dataset, *, allow_missing: bool = False) -> Split:
    """The set's split. Raises SplitInvalid where a class is missing in a part, unless `allow_missing`; DataMissing."""
    groups_N = joined_groups(dataset)
    parts_N = np.array(PARTS)[deal(dataset.strata_N, groups_N)]
    if not allow_missing:
        _require_classes(dataset, parts_N)
    return Split(dataset.name, parts_N, groups_N, digest(dataset, groups_N, parts_N))


def joined_groups(dataset: Dataset) -> np.ndarray:
    """(N,) str: the set's groups, those that share a near-duplicate image joined under the first one's name."""
    names, numbers_N = np.unique(dataset.groups_N, return_inverse=True)
    hashes_N = dataset.hashes()
    hashes_U, firsts_U = np.unique(hashes_N, return_index=True)
    like = firsts_U[near_pairs(hashes_U, hashes_U, JOIN_BITS)]
    same = np.column_stack([firsts_U[np.searchsorted(hashes_U, hashes_N)], np.arange(len(dataset))])
    together_G = joined(len(names), numbers_N[np.concatenate([like, same])])
    first = np.unique(together_G, return_index=True)[1]
    return names[first[together_G[numbers_N]]]


def deal(strata_N: np.ndarray, groups_N: np.ndarray) -> np.ndarray:
    """(N,) int64: each item's place in PARTS. Items of stratum -1 follow their groups."""
    numbers_N = np.unique(groups_N, return_inverse=True)[1]
    count = int(numbers_N.max()) + 1
    shares_GC = np.zeros((count, int(strata_N.max()) + 2))
    np.add.at(shares_GC, (numbers_N, strata_N), 1.0)  # -1 is the last column
    shares_GC = shares_GC[:, shares_GC.any(0)]
    shares_GC /= shares_GC.sum(0)
    rng, aim_P1 = np.random.default_rng(SEED), np.array(SHARES)[:, None]
    best, best_cost = np.zeros(count, np.int64), np.inf
    for _ in range(max(12, _GROUP_DEALS // count)):
        # Groups that weigh most are dealt first, in an order that chance disturbs: what is left fills the gaps.
        order = np.argsort(-shares_GC.max(1) * rng.uniform(0.5, 1.5, count), kind="stable")
        parts, held_PC = np.zeros(count, np.int64), np.zeros((len(PARTS), shares_GC.shape[1]))
        for group in order:
            # What a part would still lack (or have too much) of every stratum, were the group put there.
            costs = ((held_PC + shares_GC[group] - aim_P1) ** 2 - (held_PC - aim_P1) ** 2) / aim_P1
            parts[group] = costs.sum(1).round(9).argmin()  # rounded: every machine breaks ties alike
            held_PC[parts[group]] += shares_GC[group]
        cost = float(((held_PC - aim_P1) ** 2 / aim_P1).sum()) + 10.0 * np.count_nonzero(held_PC == 0.0)
        if cost < best_cost - 1e-9:
            best, best_cost = parts, cost
    return best[numbers_N]


def digest(dataset: Dataset, groups_N: np.ndarray, parts_N: np.ndarray) -> str:
    """sha256 over one line an item; two tasks of one set differ in their labels only."""
    lines = hashlib.sha256()
    for index, source in enumerate(dataset.sources):
        box = "" if dataset.boxes_N4 is None else dataset.boxes_N4[index].tolist()
        label = dataset.labels_N[index]
        name = dataset.classes[label] if label >= 0 else ""
        lines.update(f"{source.file}\t{source.sha256}\t{box}\t{name}\t{groups_N[index]}\t{parts_N[index]}\n".encode())
    return lines.hexdigest()


def table(dataset: Dataset, split: Split) -> Iterator[tuple[str, ...]]:
    """The split's rows in COLUMNS: one an image and class; `slide` its file's name, `patient` and `case` its group."""
    seen = set()
    for index, source in enumerate(dataset.sources):
        label = int(dataset.labels_N[index])
        if label < 0 or (source.file, label) in seen:
            continue
        seen.add((source.file, label))
        group = str(split.groups_N[index])
        yield (
            dataset.name,
            group,
            group,
            source.file.rsplit("/", 1)[-1],
            dataset.classes[label],
            str(label),
            str(split.parts_N[index]),
            "",
            source.licence,
        )


def _require_classes(dataset: Dataset, parts_N: np.ndarray) -> None:
    for part in PARTS:
        inside = dataset.labels_N[parts_N == part]
        for label, name in enumerate(dataset.classes):
            if label not in inside:
                raise SplitInvalid(
                    f"A split of {dataset.name} by {dataset.grouping} leaves no {name!r} in its {part} part: "
                    "the class lies in too few groups. Merge classes, or leave this one out."
                )


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.data.split", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    chosen = parser.parse_args(arguments)

    def work() -> None:
        dataset = load(chosen.name)
        rows = table(dataset, held_out(dataset, allow_missing=True))
        csv.writer(sys.stdout, lineterminator="\n").writerows([COLUMNS, *rows])

    return command.status(work, "The table")


if __name__ == "__main__":
    sys.exit(main())
