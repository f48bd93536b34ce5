"""The one report. Every encoding (JSON, DICOM SR, HTML, …) is a pure function of it (DESIGN.md law 1)."""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from gateway.domain.codes import Code
from gateway.domain.explanation import Explanation
from gateway.domain.model import ModelVersion
from gateway.domain.order import Order
from gateway.domain.screened import ScreeningResult
from gateway.domain.slide import SlideHeader, TileGrid


class ReportState(StrEnum):
    """Preliminary until a person signs; amended from a person's first correction on."""

    PRELIMINARY = "preliminary"
    FINAL = "final"
    AMENDED = "amended"


UNSIGNED = "Preliminary: made by software, not signed by a person."
SIGNED = "Made by software, signed by a person."
"""What the statement says of its state."""


class FindingKind(StrEnum):
    """What a finding is about, beside the protocol's own result."""

    INTENDED_USE = "intended-use"
    QUALITY = "quality"
    CONFIDENCE = "confidence"
    NOT_READ = "not-read"
    SETTING = "setting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A typed remark that the reader must know. `series` names the slide it is about; None = the whole case."""

    kind: FindingKind
    code: Code
    text: str
    series: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxPx:
    """A box in pixels of the total pixel matrix of one level, top left corner and size."""

    x_px: int
    y_px: int
    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One tile that stands for a result: where it lies (of which instance) and how sure the model was of it."""

    sop_instance_uid: str
    box: BoxPx
    x_um: float
    y_um: float
    size_um: float
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TissueClass:
    """One class on one slide. `share` is its part (0..1) of the tissue area that was read; `code` is what may be shown
    for this slide (the exploratory code outside the intended use)."""

    index: int
    code: Code
    color: str
    tiles: int
    area_mm2: float
    share: float
    mean_probability: float | None
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TissueResult:
    """What tissue is where on one slide. `uncertain_*`: tiles whose top class lies under the operating point."""

    series: str
    exploratory: bool
    classes: tuple[TissueClass, ...]
    uncertain_tiles: int
    uncertain_area_mm2: float
    uncertain_share: float
    tiles: int
    area_mm2: float
    operating_point: str
    min_probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideClass:
    """One class of a slide as a whole. `code` is what may be shown for this slide (the exploratory code outside the
    intended use); a class that is not `supported` is never the answer."""

    index: int
    code: Code
    color: str
    supported: bool
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TopTile:
    """One of the tiles that the answer rests on most, and where it lies. `attention` is relative to the slide's most
    attended tile (1), `share` the tile's part (0..1) of all attention on the slide."""

    sop_instance_uid: str
    box: BoxPx
    x_um: float
    y_um: float
    size_um: float
    attention: float
    share: float


class EvidenceSource(StrEnum):
    """Where the weight of a tile comes from: the head's own attention, or what its absence does to the answer."""

    ATTENTION = "attention"
    OCCLUSION = "occlusion"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideClassification:
    """What one slide as a whole is taken for. `answer` is the index of the class that reached the operating point, None
    where none did. `tiles` were read; `bag` of them, evenly spaced, were seen by the slide's model. `explanation`: what
    the objects of the order's prompts mean to it; None where it has none."""

    series: str
    exploratory: bool
    classes: tuple[SlideClass, ...]
    answer: int | None
    operating_point: str
    min_probability: float
    tiles: int
    bag: int
    evidence: EvidenceSource
    top_tiles: tuple[TopTile, ...]
    explanation: Explanation | None = None

    @property
    def answered(self) -> SlideClass | None:
        """The class that reached the operating point."""
        return next((each for each in self.classes if each.index == self.answer), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectFigures:
    """What was counted of a prompt's objects on one slide, from the splitting of its mask into instances.

    `density_per_mm2`: objects per mm² of the tissue read at its resolution. Areas are percentiles over the objects.
    `irregularity` (0..1): mean over the objects, weighted by their areas, of 1 - 4·pi·area / perimeter² (perimeter by
    Crofton's formula in four directions). `approximate`: touching objects were told apart by rule, not by the model.
    Where none of the mask's pieces has the least size of an object, count and density are 0 and all else is None.
    """

    count: int
    density_per_mm2: float
    mean_area_um2: float | None
    area_p10_um2: float | None
    area_median_um2: float | None
    area_p90_um2: float | None
    irregularity: float | None
    approximate: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmented:
    """What was found of one prompt on one slide.

    `index`: the prompt's place in the order, from 0. `prompt` is the text as given, `triple` what was understood by it
    ("nuclei-level epithelial in colon pathology"), `category` and `code` the same in codes. `supported`: whether the
    model was measured for it, `val_dice` how well (0..1). `presence`: the model's probability that there is any; under
    `min_presence`, the least (0..1) that counts as an answer, the mask is empty (`present` false). `mpp`: micrometres a
    side of a mask pixel. `area_fraction` (0..1) is the mask's part of the tissue read at that scale. `mean_probability`
    (0..1) is over the mask. `seg`: the file beside the report whose segment this is; None where none was written.
    """

    index: int
    prompt: str
    triple: str
    category: Code
    code: Code
    color: str
    supported: bool
    present: bool
    presence: float
    min_presence: float
    mpp: float
    area_mm2: float
    area_fraction: float
    mean_probability: float | None
    objects: ObjectFigures | None
    val_dice: float | None = None
    seg: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentationResult:
    """What was found of all prompts on one slide, in the order's order. `area_mm2`: the tissue that was read at the
    finest resolution."""

    series: str
    exploratory: bool
    segments: tuple[Segmented, ...]
    area_mm2: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideQuality:
    """How well the tissue of a slide can be seen, over the tiles that were read (`gateway.slides.quality`).

    `focus_p10`, `focus_median`, `focus_p90`: percentiles over the tiles of the focus measure, which is without unit and
    higher where sharper; `blurred_share` (0..1) of the tiles lie under the limit. `saturation` and `brightness` (0..1)
    are means over the stained pixels. `pen_area_mm2` is the area of pen marks on the slide.
    """

    focus_p10: float
    focus_median: float
    focus_p90: float
    blurred_share: float
    saturation: float
    brightness: float
    pen_area_mm2: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StainFigures:
    """How strongly, and with which colours, a slide is stained (`gateway.slides.stain`).

    `haematoxylin_od`, `eosin_od`: mean optical density (base 10) of each stain over the tissue. `haematoxylin`,
    `eosin`: the stains' own directions in optical density (red, green, blue; length 1). `distance_deg`: the larger of
    the angles between these and the reference of the model's card; None where the card has no reference.
    """

    haematoxylin_od: float
    eosin_od: float
    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    distance_deg: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideReading:
    """One slide of the order: read, or not read and why."""

    study: str
    series: str
    read: bool
    reason: str | None = None
    header: SlideHeader | None = None
    container: str | None = None
    stain: str | None = None
    site: Code | None = None
    grid: TileGrid | None = None
    level_mpp: float | None = None
    level_width_px: int | None = None
    level_height_px: int | None = None
    sop_instance_uids: tuple[str, ...] = ()
    tissue_area_mm2: float | None = None
    tiles_read: int = 0
    frames_missing: int = 0
    quality: SlideQuality | None = None
    stain_figures: StainFigures | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture that belongs to the report; the bytes lie beside it in `file`. `role`: thumbnail, tissue-map,
    attention-map, top-tile-1 (and so on, in the order of `top_tiles`), cell-map, cell-1 (in the order of `gallery`); of
    the order's first prompt segment-1, where all of it lies, and segment-field-1, a place where much of it does."""

    role: str
    file: str
    media_type: str
    sha256: str
    width_px: int
    height_px: int
    series: str


class ObjectKind(StrEnum):
    """What a file of the report holds: the report itself for people or machines, or a part of it drawn on the slide."""

    STRUCTURED_REPORT = "structured-report"
    SEGMENTATION = "segmentation"
    PARAMETRIC_MAP = "parametric-map"
    ANNOTATIONS = "annotations"
    GEOJSON = "geojson"
    PAGE = "page"
    DOCUMENT = "document"
    KEY_OBJECTS = "key-objects"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultObject:
    """One file beside report.json that says the report, or a part of it, in another encoding.

    `study` and `series` name the study, or the slide, that it is about; both are None where it is about the whole case.
    """

    kind: ObjectKind
    file: str
    media_type: str
    study: str | None = None
    series: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Software:
    """The device that made the report (TID 1004 device observer)."""

    name: str
    manufacturer: str
    version: str
    device_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """Who takes responsibility for a revision. `by` is the principal's subject, `time` is UTC."""

    by: str
    name: str
    organisation: str
    time: datetime
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class Amendment:
    """A person's correction: why, what is right instead, and the same as coded findings."""

    reason: str
    text: str
    findings: tuple[Code, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedAmendment:
    """An amendment as it stands in the report since `revision`."""

    revision: int
    amendment: Amendment
    signature: Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The whole answer to one order. `issued` is UTC; it is fixed when the report is first built, never re-read.

    `revision` counts from 1, the machine's; `supersedes` is the one before it. `signature` is that of this revision;
    `amendments` are all corrections so far, oldest first: a later one adds to the earlier.
    """

    schema_version: str
    analysis_id: str
    protocol: str
    state: ReportState
    issued: datetime
    statement: str
    exploratory: bool
    software: Software
    models: tuple[ModelVersion, ...]
    order: Order
    slides: tuple[SlideReading, ...]
    findings: tuple[Finding, ...]
    tissue: tuple[TissueResult, ...] = ()
    slide_classes: tuple[SlideClassification, ...] = ()
    segmentations: tuple[SegmentationResult, ...] = ()
    screenings: tuple[ScreeningResult, ...] = ()
    pictures: tuple[Picture, ...] = ()
    objects: tuple[ResultObject, ...] = ()
    revision: int = 1
    supersedes: int | None = None
    signature: Signature | None = None
    amendments: tuple[SignedAmendment, ...] = ()

    def signed(self, signature: Signature) -> "Report":
        """The next revision: the same, with this signature under it."""
        state = ReportState.AMENDED if self.amendments else ReportState.FINAL
        return self._next(state, signature, self.amendments)

    def amended(self, amendment: Amendment, signature: Signature) -> "Report":
        """The next revision: with the amendment, signed by whoever makes it."""
        added = SignedAmendment(revision=self.revision + 1, amendment=amendment, signature=signature)
        return self._next(ReportState.AMENDED, signature, (*self.amendments, added))

    def _next(self, state: ReportState, signature: Signature, amendments: tuple[SignedAmendment, ...]) -> "Report":
        return replace(
            self,
            state=state,
            issued=signature.time,
            statement=self.statement.replace(UNSIGNED, SIGNED),
            revision=self.revision + 1,
            supersedes=self.revision,
            signature=signature,
            amendments=amendments,
        )

    @property
    def may_be_signed(self) -> bool:
        """Whether a signature would add something: nobody has signed yet, or the last revision was a correction."""
        if self.state is ReportState.PRELIMINARY:
            return True
        return bool(self.amendments) and self.amendments[-1].revision == self.revision

    def slide_of(self, series: str) -> SlideReading | None:
        """The slide of a series, read or not; None where the order has none."""
        return next((slide for slide in self.slides if slide.series == series), None)

    def tissue_of(self, series: str) -> TissueResult | None:
        """The tissue result of the slide of a series, if there is one."""
        return next((result for result in self.tissue if result.series == series), None)

    def classes_of(self, series: str) -> SlideClassification | None:
        """What the slide of a series was taken for, if it was asked."""
        return next((result for result in self.slide_classes if result.series == series), None)

    def segments_of(self, series: str) -> SegmentationResult | None:
        """What was found of the order's prompts on the slide of a series, if it was asked."""
        return next((result for result in self.segmentations if result.series == series), None)

    def screening_of(self, series: str) -> ScreeningResult | None:
        """What the slide of a series was read as, if it was screened."""
        return next((result for result in self.screenings if result.series == series), None)
