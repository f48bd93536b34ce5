"""Segmentation by words while somebody waits: what is asked of a small region, and the masks that are the answer."""

from dataclasses import dataclass

from gateway.domain.codes import Code
from gateway.domain.order import Order, Patient, RegionUm, SlideReference, Specimen
from gateway.domain.report import Finding

PROTOCOL = "segmentation"
"""The protocol whose models answer, and which makes a report of the same."""

Ring = tuple[tuple[float, float], ...]
"""Corners (x, y) in µm from the slide image's top left corner; closed: the last is the first."""
Polygon = tuple[Ring, ...]
"""The outer ring, then those of its holes (RFC 7946 3.1.6)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentAsk:
    """One slide, a region of it, and prompts. Identifiers that are given have to agree with the slide's header."""

    study: str
    series: str
    region: RegionUm
    prompts: tuple[str, ...]
    patient: Patient
    accession: str | None = None
    container: str | None = None

    @property
    def order(self) -> Order:
        """What would be ordered for a report of the same."""
        slide = SlideReference(self.study, (self.series,))
        return Order(
            protocol=PROTOCOL,
            specimens=(Specimen(slides=(slide,), container=self.container),),
            accession=self.accession,
            patient=self.patient,
            prompts=self.prompts,
            region=self.region,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptMask:
    """The answer to one prompt. `triple` is how it was understood; `presence` the probability (0..1) that the object is
    in the region at all, `present` whether it counts as there: the mask is empty where it does not.

    The mask is `png`, one bit a pixel, white inside, `width_px` × `height_px` pixels of `mpp` µm, its top left corner
    at `x_um`, `y_um`. `polygons` are the outlines of the same pixels, simplified by at most `tolerance_um`; where they
    have too many corners at that, what is no wider has none. `area_fraction` is that of the region (0..1).

    Two things keep a mask from being shown, and a finding says which: of a slide with another stain than the models
    were made for, picture and polygons are empty, while presence and area are what was found; where the slide is too
    coarse for the prompt, there are no pixels at all (`width_px` 0, `png` empty), and nothing is said of the object:
    `present`, `presence` and its area are None.
    """

    prompt: str
    triple: str
    category: Code
    code: Code
    supported: bool
    present: bool | None
    presence: float | None
    mpp: float
    x_um: float
    y_um: float
    width_px: int
    height_px: int
    area_um2: float | None
    area_fraction: float | None
    png: bytes
    polygons: tuple[Polygon, ...]
    tolerance_um: float
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentAnswer:
    """One mask a prompt, in the prompts' order; `models`: name and version of each that was used; `findings` are about
    the slide."""

    study: str
    series: str
    region: RegionUm
    models: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]
    masks: tuple[PromptMask, ...]
