"""What a run has learned from: groups and picture hashes, as its manifest keeps them for the leakage rules."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.data.dataset import Dataset


@dataclass(frozen=True, slots=True)
class Seen:
    """groups: set folder (`he_oral`) to its groups; hashes: the perceptual hash of each source image, 16 hex digits."""

    groups: Mapping[str, tuple[str, ...]]
    hashes: tuple[str, ...]

    @classmethod
    def of(cls, dataset: Dataset, index_K: np.ndarray) -> "Seen":
        """The items `index_K` of a set. Raises DataMissing."""
        hashes_N, groups = dataset.hashes(), {}
        for index in index_K:
            groups.setdefault(dataset.sources[index].set, set()).add(str(dataset.groups_N[index]))
        return cls(_sorted(groups), tuple(sorted({f"{hashes_N[index]:016x}" for index in index_K})))

    @classmethod
    def union(cls, parts: Iterable["Seen"]) -> "Seen":
        """All of them together."""
        groups: dict[str, set[str]] = {}
        hashes: set[str] = set()
        for part in parts:
            hashes.update(part.hashes)
            for name, members in part.groups.items():
                groups.setdefault(name, set()).update(members)
        return cls(_sorted(groups), tuple(sorted(hashes)))

    @classmethod
    def read(cls, manifest: Mapping[str, Any]) -> "Seen":
        """What a run's manifest says; nothing where it was written before manifests said it."""
        entry = manifest.get("seen") or {"groups": {}, "hashes": []}
        return cls(
            {name: tuple(members) for name, members in entry["groups"].items()},
            tuple(entry["hashes"]),
        )

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"groups": {name: list(members) for name, members in self.groups.items()}, "hashes": list(self.hashes)}


def _sorted(groups: Mapping[str, set[str]]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(sorted(groups[name])) for name in sorted(groups)}
