"""A slide as its header describes it: identity, levels and the tile grid laid over one level. No pixels here."""

from dataclasses import dataclass

from gateway.domain.codes import Code


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideHeader:
    """What the image header says, as received; None where it says nothing.

    `kinds`: what specimen it is and was taken from, all specimens on the slide and all steps of their preparation;
    `preparation`: how it was collected and prepared.
    """

    study_uid: str
    series_uid: str
    frame_of_reference_uid: str | None = None
    patient_id: str | None = None
    patient_id_issuer: str | None = None
    patient_name: str | None = None
    patient_birth_date: str | None = None
    patient_sex: str | None = None
    accession: str | None = None
    container_id: str | None = None
    specimen_id: str | None = None
    specimen_uid: str | None = None
    stains: tuple[Code, ...] = ()
    site: Code | None = None
    specimen_type: Code | None = None
    kinds: tuple[Code, ...] = ()
    preparation: tuple[Code, ...] = ()
    institution: str | None = None
    manufacturer: str | None = None
    model_name: str | None = None
    serial_number: str | None = None
    acquired: str | None = None
    icc_profile: bool = False


@dataclass(frozen=True, slots=True)
class SlideRemark:
    """What the reader of a report must know of how the slide was read: `key` of the findings' table, and a sentence."""

    key: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One pyramid level. Sizes in pixels of this level, `mpp_*` in micrometres per pixel."""

    index: int
    width_px: int
    height_px: int
    mpp_x: float
    mpp_y: float
    frame_width_px: int
    frame_height_px: int
    sop_instance_uids: tuple[str, ...]
    transfer_syntax_uid: str

    @property
    def mpp(self) -> float:
        return (self.mpp_x + self.mpp_y) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TileGrid:
    """A regular grid of square tiles over one level, from its top left corner.

    `field_px` is a tile's side in pixels of the level, `tile_px` its side as the model sees it (they differ where the
    level is finer than the model's `mpp`), `mpp` what one model pixel measures in fact.
    """

    level: int
    mpp: float
    tile_px: int
    field_px: int
    columns: int
    rows: int

    @property
    def tile_um(self) -> float:
        return self.tile_px * self.mpp

    @property
    def tile_area_mm2(self) -> float:
        return (self.tile_um / 1000.0) ** 2
