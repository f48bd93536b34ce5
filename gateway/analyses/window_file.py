"""A plan of windows as arrays and JSON-ready values, so that it lies in one file with what else a protocol plans."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy.typing as npt

from gateway.domain.slide import TileGrid
from gateway.slides import TilePlan
from gateway.slides.windows import WindowPlan

_ARRAYS = ("tops_N", "lefts_N", "strips_N", "tissue_N")
_TILE_ARRAYS = ("rows_N", "columns_N", "tissue_N")
_FIELDS = ("level", "mpp_x", "mpp_y", "side_px", "field_px", "height_px", "width_px", "digest")
_TILE_FIELDS = ("strip_tiles", "frames", "digest")


def arrays_of(plan: WindowPlan, number: int = 0) -> dict[str, Any]:
    """The plan's arrays by name; `number` tells several plans of a file apart."""
    windows = {f"{name}-{number}": getattr(plan, name) for name in _ARRAYS}
    return windows | {f"tiles-{name}-{number}": getattr(plan.tiles, name) for name in _TILE_ARRAYS}


def values_of(plan: WindowPlan) -> dict[str, Any]:
    """All else of the plan, JSON-ready."""
    return {
        "fields": {name: getattr(plan, name) for name in _FIELDS},
        "grid": asdict(plan.tiles.grid),
        "tiles": {name: getattr(plan.tiles, name) for name in _TILE_FIELDS},
    }


def plan_of(arrays: Mapping[str, npt.NDArray[Any]], values: Mapping[str, Any], number: int = 0) -> WindowPlan:
    """The inverse of both. Raises LookupError, TypeError, ValueError for what is no plan."""
    of_tiles: dict[str, Any] = {name: arrays[f"tiles-{name}-{number}"] for name in _TILE_ARRAYS}
    of_windows: dict[str, Any] = {name: arrays[f"{name}-{number}"] for name in _ARRAYS}
    tiles = TilePlan(grid=TileGrid(**values["grid"]), **of_tiles, **values["tiles"])
    return WindowPlan(**values["fields"], **of_windows, tiles=tiles)
