"""What pages that are made of run folders have in common: only a run's recipe, metrics and manifest are read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import RunInvalid
from training.runs import read_json, read_toml


@dataclass(frozen=True, slots=True)
class Shown:
    """What a page shows of a run."""

    recipe: Mapping[str, Any]
    metrics: Mapping[str, Any]
    manifest: Mapping[str, Any]

    @property
    def origin(self) -> str:
        """From which recipe, seed and commit it comes, and at what cost."""
        name, seed, commit = self.recipe["name"], self.recipe["seed"], self.manifest["git_commit"][:12]
        changed = f" (with {count} changed files)" if (count := self.manifest["git_changed_files"]) else ""
        return (
            f"Recipe `training/recipes/{name}.toml`, seed {seed}, commit {commit}{changed}, "
            f"{self.metrics['cpu_s']:.0f} s of CPU time on one thread"
        )


def shown(folder: Path, system: str) -> Shown:
    """A run of a system. Raises RunInvalid."""
    metrics, manifest = read_json(folder, "metrics.json"), read_json(folder, "manifest.json")
    recipe = read_toml(folder / "recipe.toml")
    if recipe.get("system") != system:
        raise RunInvalid(f"The run folder {folder.name} is not one of the {system} system. Name one that is.")
    return Shown(recipe, metrics, manifest)


def score_table(first: str, scores: Iterable[str], rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A table in Markdown, one row a classifier, one column a score with its interval."""
    names = list(scores)
    return [
        f"| {first} | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
        *(
            f"| {row} | " + " | ".join(interval(figures[name]) for name in names) + " |"
            for row, figures in rows.items()
        ),
    ]


def interval(figure: Mapping[str, float], *, sign: bool = False) -> str:
    """A figure with its interval; with `sign`, a difference of two."""
    plus = "+" if sign else ""
    return f"{figure['value']:{plus}.2f} [{figure['low']:{plus}.2f}, {figure['high']:{plus}.2f}]"
