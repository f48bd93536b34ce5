"""A phantom: a whole slide of any size with known tissue, for geometry, memory and fault tests.

It looks enough like stained tissue to be found as tissue. It carries no pathology: never make a claim about a model
with it. Everything follows from the arguments and the seed, byte for byte.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from pydicom.pixels.encoders import RLELosslessEncoder

from gateway.domain.codes import Code
from gateway.slides.phantom_dicom import Encoding, Identity, LevelFile, write_label, write_level

Image = NDArray[np.uint8]

_PALETTE = 8
_GLASS = (243.0, 243.0, 244.0)
_HEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
_EOSIN = np.array([0.07, 0.99, 0.11], np.float32)
_CYAN = np.array([0.80, 0.45, 0.35], np.float32)
"""Colour vectors of the stains, optical density per channel (Ruifrok and Johnston 2001 for the first two)."""


@dataclass(frozen=True, slots=True)
class Texture:
    """How one kind of tissue looks: densities of the two stains, and its nuclei."""

    label: str
    ground: tuple[float, float]
    nuclei_per_mm2: float
    nucleus_um: float


_TEXTURES = {
    "he": (
        Texture("stroma", (0.03, 0.30), 900, 6.0),
        Texture("epithelium", (0.12, 0.22), 4500, 8.0),
        Texture("lymphocytes", (0.10, 0.15), 9000, 5.5),
    ),
    "cytology": (Texture("cells", (0.0, 0.0), 900, 9.0),),
}

ENCODINGS = {
    "jpeg": Encoding("1.2.840.10008.1.2.4.50", "YBR_FULL_422", "ISO_10918_1"),
    "jpeg2000": Encoding("1.2.840.10008.1.2.4.90", "YBR_RCT", None),
    "jpeg-ls": Encoding("1.2.840.10008.1.2.4.80", "RGB", None),
    "rle": Encoding("1.2.840.10008.1.2.5", "RGB", None),
    "uncompressed": Encoding("1.2.840.10008.1.2.1", "RGB", None),
}


@dataclass(frozen=True, slots=True)
class Ellipse:
    """A piece of tissue, upright, in pixels of the finest level."""

    x_px: float
    y_px: float
    radius_x_px: float
    radius_y_px: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PhantomTruth:
    """What is on the phantom. The ellipses do not overlap and lie wholly on the slide."""

    study_uid: str
    series_uid: str
    width_px: int
    height_px: int
    mpp: float
    tissue: tuple[Ellipse, ...]
    tissue_area_mm2: float
    files: tuple[Path, ...]

    def label_at(self, x_px: float, y_px: float) -> str | None:
        """The kind of tissue at a point of the finest level; None on glass."""
        for piece in self.tissue:
            if ((x_px - piece.x_px) / piece.radius_x_px) ** 2 + ((y_px - piece.y_px) / piece.radius_y_px) ** 2 <= 1:
                return piece.label
        return None

    def mask(self, um_per_px: float) -> NDArray[np.bool_]:
        """Tissue as a picture of the whole slide, (H, W) bool, by the centres of its pixels."""
        step_px = um_per_px / self.mpp
        x = (np.arange(round(self.width_px / step_px)) + 0.5) * step_px
        y = (np.arange(round(self.height_px / step_px)) + 0.5) * step_px
        mask = np.zeros((len(y), len(x)), np.bool_)
        for piece in self.tissue:
            mask |= _inside(piece, x[None, :], y[:, None])
        return mask


@dataclass(frozen=True, slots=True, kw_only=True)
class PhantomOptions:
    """What tests vary. `levels` None = down to one frame; `empty_frames` of the finest level are written with zero
    length; `sparse` leaves frames without tissue out (TILED_SPARSE); `parts` > 1 makes each level a concatenation;
    `offset_table`: basic, extended, empty or auto (extended above 4 GiB)."""

    encoding: str = "jpeg"
    quality: int = 80
    levels: int | None = None
    frame_px: int = 256
    coverage: float = 0.35
    tissue: bool = True
    label_only: bool = False
    spacing: bool = True
    sparse: bool = False
    parts: int = 1
    offset_table: str = "auto"
    empty_frames: tuple[int, ...] = ()
    stains: tuple[Code, ...] | None = None
    organ: Code | None = None
    identity: Identity = field(default_factory=Identity)


def write_phantom(
    out: Path,
    *,
    width_px: int,
    height_px: int,
    kind: str = "he",
    mpp: float = 0.5,
    seed: int = 0,
    options: PhantomOptions | None = None,
    **changes: object,
) -> PhantomTruth:
    """Write a phantom series of DICOM whole-slide images (PS3.3 A.32.8) to `out` and say what is on it.

    `kind` is "he" or "cytology"; keyword arguments change single fields of `PhantomOptions`. Frames are streamed to
    the files, so 80,000 × 80,000 pixels need little memory. Also writes `phantom.json`, the truth. Raises ValueError
    for arguments that make no slide.
    """
    options = _with(options or PhantomOptions(), changes)
    if kind not in _TEXTURES or min(width_px, height_px) < options.frame_px or not 0 < options.coverage <= 0.7:
        raise ValueError(
            "a phantom is he or cytology, at least one frame in size, covered by more than 0 and at most 0.7"
        )
    textures = _TEXTURES[kind]
    name = json.dumps([kind, width_px, height_px, mpp, seed, _said(options)], sort_keys=True, default=str)
    identity = options.identity.completed(
        hashlib.sha256(name.encode()).hexdigest(), kind, options.stains, options.organ
    )
    rng = np.random.default_rng(seed)
    tissue = _lay_out(rng, width_px, height_px, textures, kind, options.coverage) if options.tissue else ()
    out.mkdir(parents=True, exist_ok=True)
    for earlier in out.glob("level-*.dcm"):  # a larger phantom's further levels would belong to no slide
        earlier.unlink()
    files: list[Path] = []
    if not options.label_only:
        files = _write_levels(out, rng, textures, tissue, (width_px, height_px), mpp, options, identity)
    files.append(write_label(out, identity, len(files) + 1))
    area_px = sum(math.pi * piece.radius_x_px * piece.radius_y_px for piece in tissue)
    truth = PhantomTruth(
        study_uid=identity.study_uid,
        series_uid=identity.series_uid,
        width_px=width_px,
        height_px=height_px,
        mpp=mpp,
        tissue=tissue,
        tissue_area_mm2=area_px * mpp**2 / 1e6,
        files=tuple(files),
    )
    (out / "phantom.json").write_text(json.dumps(asdict(truth) | {"files": [file.name for file in files]}, indent=1))
    return truth


def _said(options: PhantomOptions) -> dict[str, object]:
    """The options as UIDs follow from them. What a phantom had no room for at first is left out where it is not used,
    so that the UIDs of all others stay."""
    said = asdict(options)
    said["identity"] = {
        name: value for name, value in said["identity"].items() if value or name not in ("preparation", "description")
    }
    return said


def _with(options: PhantomOptions, changes: dict[str, object]) -> PhantomOptions:
    values: dict[str, object] = {name: getattr(options, name) for name in PhantomOptions.__dataclass_fields__}
    return PhantomOptions(**(values | changes))  # type: ignore[arg-type]


def _lay_out(
    rng: np.random.Generator, width_px: int, height_px: int, textures: Sequence[Texture], kind: str, coverage: float
) -> tuple[Ellipse, ...]:
    """One ellipse in each cell of a coarse grid (one in all for cytology: the deposit), so that none overlap."""
    columns, rows = (1, 1) if kind == "cytology" else (3, 2) if width_px >= height_px else (2, 3)
    cell_x, cell_y = width_px / columns, height_px / rows
    pieces = []
    for i in range(columns * rows):
        # Radii that give the wanted area and fit the cell whatever the stretch.
        limit = math.sqrt(math.pi / 4 / coverage)
        stretch = rng.uniform(1 / min(limit, 1.25), min(limit, 1.25))
        radius_x = cell_x * math.sqrt(coverage / math.pi) * stretch
        radius_y = cell_y * math.sqrt(coverage / math.pi) / stretch
        x = (i % columns + 0.5) * cell_x + rng.uniform(-1, 1) * (cell_x / 2 - radius_x)
        y = (i // columns + 0.5) * cell_y + rng.uniform(-1, 1) * (cell_y / 2 - radius_y)
        pieces.append(Ellipse(x, y, radius_x, radius_y, textures[i % len(textures)].label))
    return tuple(pieces)


def _inside(piece: Ellipse, x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = ((x - piece.x_px) / piece.radius_x_px) ** 2 + (
        (y - piece.y_px) / piece.radius_y_px
    ) ** 2 <= 1
    return inside


def _write_levels(
    out: Path,
    rng: np.random.Generator,
    textures: Sequence[Texture],
    tissue: Sequence[Ellipse],
    size_px: tuple[int, int],
    mpp: float,
    options: PhantomOptions,
    identity: Identity,
) -> list[Path]:
    palettes = {texture.label: _palette(rng, texture, options.frame_px, mpp) for texture in textures}
    palettes[""] = [_glass(rng, options.frame_px) for _ in range(_PALETTE)]
    files: list[Path] = []
    level = 0
    while True:
        scale = 2**level
        width_px, height_px = -(-size_px[0] // scale), -(-size_px[1] // scale)
        columns, rows = -(-width_px // options.frame_px), -(-height_px // options.frame_px)
        encode = encoder(options.encoding, options.quality)
        frames = _Frames(
            palettes, encode, tissue, scale, options.frame_px, rng.integers(_PALETTE, size=(rows, columns))
        )
        file = LevelFile(
            index=level,
            width_px=width_px,
            height_px=height_px,
            spacing_mm=mpp * scale / 1000 if options.spacing else None,
            frame_px=options.frame_px,
            encoding=ENCODINGS[options.encoding],
            compression_ratio=frames.ratio(),
            offset_table=options.offset_table,
            parts=options.parts,
            kept=frames.with_tissue() if options.sparse else None,
            empty=options.empty_frames if level == 0 else (),
        )
        files += write_level(out, identity, file, frames)
        level += 1
        if level == options.levels or (options.levels is None and columns * rows == 1):
            return files
        palettes = {label: _coarser(rng, images) for label, images in palettes.items()}


class _Frames:
    """The encoded frames of one level, row by row: from the palette where a frame is all glass or all one tissue, drawn
    where an outline crosses it."""

    def __init__(
        self,
        palettes: dict[str, list[Image]],
        encode: Callable[[Image], bytes],
        tissue: Sequence[Ellipse],
        scale: int,
        frame_px: int,
        choice_RC: NDArray[np.int64],
    ) -> None:
        self._palettes = palettes
        self._encode = encode
        self._tissue = tissue
        self._step = frame_px * scale
        self._scale = scale
        self._frame_px = frame_px
        self._choice_RC = choice_RC
        self._encoded = {label: [encode(image) for image in images] for label, images in palettes.items()}

    def __iter__(self) -> Iterator[list[bytes]]:
        for row in range(self._choice_RC.shape[0]):
            yield [self._frame(row, column) for column in range(self._choice_RC.shape[1])]

    def ratio(self) -> float:
        """Nominal compression ratio: over the palette's tissue frames."""
        images = [data for label, frames in self._encoded.items() if label for data in frames]
        return self._frame_px**2 * 3 * len(images) / sum(len(data) for data in images)

    def with_tissue(self) -> NDArray[np.bool_]:
        """The frames (rows, columns) that hold some tissue."""
        rows, columns = self._choice_RC.shape
        touched = [[any(self._near(row, column)) for column in range(columns)] for row in range(rows)]
        if not np.any(touched):
            touched[0][0] = True  # an image has at least one frame
        return np.array(touched, np.bool_)

    def _near(self, row: int, column: int) -> Iterator[Ellipse]:
        left, top = column * self._step, row * self._step
        for piece in self._tissue:
            # An upright ellipse meets a box where the box's point nearest to its centre lies inside.
            x = min(max(piece.x_px, left), left + self._step)
            y = min(max(piece.y_px, top), top + self._step)
            if ((x - piece.x_px) / piece.radius_x_px) ** 2 + ((y - piece.y_px) / piece.radius_y_px) ** 2 <= 1:
                yield piece

    def _frame(self, row: int, column: int) -> bytes:
        choice = int(self._choice_RC[row, column])
        near = list(self._near(row, column))
        if not near:
            return self._encoded[""][choice]
        left, top = column * self._step, row * self._step
        corners_x = np.array([left, left + self._step, left, left + self._step], np.float64)
        corners_y = np.array([top, top, top + self._step, top + self._step], np.float64)
        if len(near) == 1 and _inside(near[0], corners_x, corners_y).all():
            return self._encoded[near[0].label][choice]
        image = self._palettes[""][choice].copy()
        x = left + (np.arange(self._frame_px) + 0.5)[None, :] * self._scale
        y = top + (np.arange(self._frame_px) + 0.5)[:, None] * self._scale
        for piece in near:
            inside = _inside(piece, x, y)
            cv2.copyTo(self._palettes[piece.label][choice], inside.view(np.uint8), image)
        return self._encode(image)


def encoder(encoding: str, quality: int) -> Callable[[Image], bytes]:
    """How a frame, (H, W, 3) uint8 RGB, becomes bytes in one of ENCODINGS; `quality` is of JPEG."""
    if encoding == "jpeg":
        return lambda image: simplejpeg.encode_jpeg(image, quality=quality, colorspace="RGB", colorsubsampling="422")
    if encoding == "jpeg2000":
        return lambda image: bytes(imagecodecs.jpeg2k_encode(image, level=0, reversible=True, codecformat="j2k"))
    if encoding == "jpeg-ls":
        return lambda image: bytes(imagecodecs.jpegls_encode(image))
    if encoding == "rle":
        return _run_length
    return lambda image: image.tobytes()


def _run_length(image: Image) -> bytes:
    data: bytes = RLELosslessEncoder.encode(
        image.tobytes(),
        encoding_plugin="pydicom",
        rows=image.shape[0],
        columns=image.shape[1],
        samples_per_pixel=3,
        number_of_frames=1,
        bits_allocated=8,
        bits_stored=8,
        pixel_representation=0,
        photometric_interpretation="RGB",
        planar_configuration=0,
    )
    return data


def _glass(rng: np.random.Generator, size_px: int) -> Image:
    noise = rng.normal(0, 0.8, (size_px, size_px, 1))
    return np.clip(np.array(_GLASS) + noise, 0, 255).astype(np.uint8)


def _palette(rng: np.random.Generator, texture: Texture, size_px: int, mpp: float) -> list[Image]:
    draw = _cells if texture.label == "cells" else _tissue
    return [draw(rng, texture, size_px, mpp) for _ in range(_PALETTE)]


def _nuclei(rng: np.random.Generator, texture: Texture, size_px: int, mpp: float) -> list[tuple[float, float, float]]:
    """Centres and radii of nuclei, in pixels."""
    count = rng.poisson(texture.nuclei_per_mm2 * (size_px * mpp / 1000) ** 2)
    return [
        (rng.uniform(0, size_px), rng.uniform(0, size_px), texture.nucleus_um / 2 / mpp * rng.uniform(0.8, 1.2))
        for _ in range(count)
    ]


def _discs(size_px: int, discs: Sequence[tuple[float, float, float]], softness_px: float) -> NDArray[np.float32]:
    canvas = np.zeros((size_px, size_px), np.float32)
    for x, y, radius in discs:
        cv2.circle(canvas, (round(x), round(y)), max(1, round(radius)), 1.0, -1, cv2.LINE_AA)
    return np.asarray(cv2.GaussianBlur(canvas, (0, 0), max(0.3, softness_px)), np.float32)


def _tissue(rng: np.random.Generator, texture: Texture, size_px: int, mpp: float) -> Image:
    """Ground substance with grain, and nuclei."""
    grain = cv2.GaussianBlur(rng.normal(0, 1, (size_px, size_px)).astype(np.float32), (0, 0), 1.5 / mpp)
    grain = 1 + 0.25 * grain / max(float(grain.std()), 1e-6)
    nuclei = _discs(size_px, _nuclei(rng, texture, size_px, mpp), 0.3 / mpp)
    hematoxylin = texture.ground[0] * grain + 0.6 * nuclei
    eosin = texture.ground[1] * grain * (1 - 0.6 * nuclei)
    return _stained(hematoxylin[..., None] * _HEMATOXYLIN + eosin[..., None] * _EOSIN)


def _cells(rng: np.random.Generator, texture: Texture, size_px: int, mpp: float) -> Image:
    """Scattered cells on glass: a pale cytoplasm around each nucleus."""
    nuclei = _nuclei(rng, texture, size_px, mpp)
    cytoplasm = _discs(size_px, [(x, y, radius * 2.5) for x, y, radius in nuclei], 0.5 / mpp)
    density = 0.15 * cytoplasm[..., None] * _CYAN + 0.7 * _discs(size_px, nuclei, 0.3 / mpp)[..., None] * _HEMATOXYLIN
    return _stained(density)


def _stained(density: NDArray[np.float32]) -> Image:
    light = cv2.exp(np.maximum(density, 0) * -math.log(10)) * np.array(_GLASS, np.float32)
    return np.asarray(light, np.uint8)


def _coarser(rng: np.random.Generator, images: Sequence[Image]) -> list[Image]:
    """The palette of the next level: each image four of this level's, reduced by two."""
    size_px = images[0].shape[0]
    result = []
    for _ in images:
        a, b, c, d = (images[i] for i in rng.integers(len(images), size=4))
        mosaic = np.vstack([np.hstack([a, b]), np.hstack([c, d])])
        result.append(np.asarray(cv2.resize(mosaic, (size_px, size_px), interpolation=cv2.INTER_AREA), np.uint8))
    return result
