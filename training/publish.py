"""What every served model of ours says of itself: the texts of its card, and inputs that stand in for real tiles."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from pydantic import Field

from training.errors import RecipeInvalid
from training.runs import Part, R, Run, parse_recipe


class Coded(Part):
    """A coded concept."""

    code: str
    scheme: str
    display: str


class LabelText(Part):
    """One class: how it is named inside the intended use, how outside it, and its colour on the map."""

    code: Coded
    exploratory: Coded
    color: str = Field(pattern=r"^#[0-9a-f]{6}$")


class Published(Part):
    """The served model that comes of the recipe, for its card."""

    model: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    title: str
    mpp: float = Field(gt=0)
    tile_px: int = Field(gt=0)
    statement: str
    organs: tuple[Coded, ...]
    specimen_types: tuple[Coded, ...] = ()
    stains: tuple[str, ...]
    limits: tuple[str, ...]
    labels: tuple[LabelText, ...] = ()


def demand_only_published(run: Run, kind: type[R], recipe: R) -> None:
    """That a finished run may be published under a recipe of its kind. Raises RecipeInvalid where that differs from the
    run's own in more than its section publish, or would serve what was trained on data that are not free."""
    own, asked = parse_recipe(kind, run.recipe).model_dump(), recipe.model_dump()
    if differing := [key for key in asked if key != "publish" and asked[key] != own[key]]:
        raise RecipeInvalid(
            f"The recipe {recipe.name} differs from that of the run {run.path.name} in {', '.join(differing)}, not in "
            "its section publish alone. Train it."
        )
    entries = [*run.manifest["data"], *run.manifest.get("inherited", {}).get("data", ())]
    tiers = {entry["tier"] for entry in entries} - {"A"}
    if asked["publish"] is not None and tiers:
        raise RecipeInvalid(
            f"The run {run.path.name} learned from data of tier {', '.join(sorted(tiers))}; what ships is trained on "
            "tier A only."
        )


def card_texts(publish: Published, data: Iterable[Mapping[str, Any]], pretraining: Iterable[Any]) -> dict[str, Any]:
    """What every card says: titles and intended use of the recipe, and the sets and weights that the run learned from.
    `data` are a manifest's entries; a file that several runs read counts once."""
    files = {(entry["dataset"], entry["licence"], entry["tier"], entry["file"]) for entry in data}
    return {
        "title": publish.title,
        "mpp": publish.mpp,
        "tile_px": publish.tile_px,
        "intended_use": {
            "statement": publish.statement,
            "organs": [code.model_dump() for code in publish.organs],
            "specimen_types": [code.model_dump() for code in publish.specimen_types],
            "stains": list(publish.stains),
        },
        "limits": list(publish.limits),
        "data": [
            {
                "dataset": dataset,
                "licence": licence,
                "tier": tier,
                "files": sum(file[:3] == (dataset, licence, tier) for file in files),
            }
            for dataset, licence, tier in sorted({file[:3] for file in files})
        ],
        "pretraining": list(pretraining),
    }


def synthetic_tiles(count: int, side_px: int, seed: int) -> np.ndarray:
    """(N,side,side,3) uint8: smooth pink and violet clouds with dark dots, a stand-in for H&E that needs no data."""
    rows, columns = np.mgrid[0:side_px, 0:side_px] / side_px
    tiles = []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        cloud = sum(
            np.cos(2 * np.pi * (u * rows + v * columns + phase)) / (1 + u + v)
            for u, v, phase in zip(rng.integers(0, 6, 9), rng.integers(0, 6, 9), rng.random(9), strict=True)
        )
        violet = (1 / (1 + np.exp(-3 * cloud)))[..., None]
        tile = violet * rng.uniform((90, 50, 130), (150, 100, 180)) + (1 - violet) * rng.uniform(
            (200, 120, 170), (245, 210, 230)
        )
        for row, column in rng.integers(0, side_px, (40, 2)):
            tile[max(row - 3, 0) : row + 4, max(column - 3, 0) : column + 4] = (70, 40, 110)
        tiles.append(np.clip(np.rint(tile), 0, 255).astype(np.uint8))
    return np.stack(tiles)
