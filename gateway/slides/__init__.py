"""A slide as levels, frames and tiles: opening, tissue, the grid, the frame pipeline, and a phantom for tests."""

from gateway.slides.grid import TilePlan, plan_tiles
from gateway.slides.levels import choose_level
from gateway.slides.pipeline import FrameGauge, TileBatch, stream_tiles
from gateway.slides.slide import Slide
from gateway.slides.tissue import TissueMask, find_tissue, tissue_and_pen
from gateway.slides.wanted import frames_of, overview_levels

__all__ = [
    "FrameGauge",
    "Slide",
    "TileBatch",
    "TilePlan",
    "TissueMask",
    "choose_level",
    "find_tissue",
    "frames_of",
    "overview_levels",
    "plan_tiles",
    "stream_tiles",
    "tissue_and_pen",
]
