"""Decoding of one frame to RGB, by transfer syntax and photometric interpretation (PS3.5 8.2, PS3.3 C.7.6.3.1.2).

Every decoder used here releases the GIL, so a thread pool decodes on all cores.
"""

import struct

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from gateway.operations.errors import CorruptFrame, InvalidSlide, UnsupportedTransferSyntax
from gateway.slides import codestream
from gateway.slides.codestream import Bytes, Codestream
from gateway.slides.colour import ToSrgb
from gateway.slides.header import NATIVE

Image = NDArray[np.uint8]
JPEG = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"}
_LOSSLESS_JPEG = {"1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"}
_JPEG_LS = {"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"}
_JPEG_2000 = {
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.201",
    "1.2.840.10008.1.2.4.202",
    "1.2.840.10008.1.2.4.203",
}
_JPEG_XL = {"1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.111", "1.2.840.10008.1.2.4.112"}
_RLE = {"1.2.840.10008.1.2.5"}
SUPPORTED = frozenset(JPEG | _LOSSLESS_JPEG | _JPEG_LS | _JPEG_2000 | _JPEG_XL | _RLE | NATIVE)

# PS3.3 C.7.6.3.1.2: the full-range YCbCr of ITU-T T.871.
_YBR_TO_RGB = np.array([[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]], np.float32)


def check_transfer_syntax(uid: str) -> None:
    """Raise UnsupportedTransferSyntax unless frames of this transfer syntax can be decoded."""
    if uid not in SUPPORTED:
        raise UnsupportedTransferSyntax(
            f"The slide's pixels are in the transfer syntax {uid}, which cannot be decoded. Store or send the slide as "
            "JPEG baseline, JPEG 2000, HTJ2K, JPEG-LS, JPEG XL, RLE or uncompressed."
        )


_READERS: dict[str, codestream.Reader] = {
    **dict.fromkeys(JPEG | _LOSSLESS_JPEG, codestream.jpeg),
    **dict.fromkeys(_JPEG_LS, codestream.jpeg_ls),
    **dict.fromkeys(_JPEG_2000, codestream.jpeg_2000),
    **dict.fromkeys(_JPEG_XL, codestream.jpeg_xl),
}
_YBR = {"YBR_FULL", "YBR_FULL_422"}
_MAX_FRAME_PX = 1 << 26
_MAX_OVERHEAD = 1 << 20
"""No encoding makes a frame more than twice as large; what a codestream may carry besides (profiles, padding)."""
_CORRUPT = "A frame of the slide is damaged and cannot be decoded. Send the slide to the archive again."


class FrameDecoder:
    """Decodes the frames of one image to (rows, columns, 3) uint8 in sRGB. For many threads.

    `photometric` is the header's word for the colour space; a codestream that says its own is believed before it, since
    converters leave RGB in the header of YCbCr streams. `planar`: uncompressed pixels come as three colour planes.
    `to_srgb` is applied to each frame once. Raises UnsupportedTransferSyntax, InvalidSlide (colour space, frame size).
    """

    def __init__(
        self,
        transfer_syntax: str,
        photometric: str,
        rows: int,
        columns: int,
        *,
        planar: bool = False,
        to_srgb: ToSrgb | None = None,
    ) -> None:
        check_transfer_syntax(transfer_syntax)
        if photometric not in _photometrics(transfer_syntax):
            raise InvalidSlide(
                f"The slide's photometric interpretation {photometric} cannot be read with its transfer syntax. Send "
                "the slide as RGB or as JPEG."
            )
        if rows * columns > _MAX_FRAME_PX:
            raise InvalidSlide(
                f"The slide has frames of {columns} × {rows} pixels, too large to be read one at a time. Convert it to "
                "smaller frames."
            )
        self._syntax = transfer_syntax
        self._photometric = photometric
        self._shape = (rows, columns, 3)
        self._planar = planar
        self._to_srgb = to_srgb
        self._reader = _READERS.get(transfer_syntax)
        self._last: tuple[bytes, Codestream] | None = None

    def __call__(self, data: Bytes, scratch: Image | None = None) -> Image:
        """One frame, which may be a view of the scratch image (rows, columns, 3) where one is given.

        Raises CorruptFrame where the bytes are damaged or hold more than the frame. They may hold less: some converters
        cut the frames of the right and lower edge (see `visible`).
        """
        head = self._checked_head(data)
        try:
            image = self._decode(data, scratch, head)
        except Exception as error:
            # Codecs raise what they like; each means the same: these bytes are not the frame they should be.
            raise CorruptFrame(_CORRUPT) from error
        return self._finished(image)

    def reduced(self, data: Bytes, factor: float) -> Image:
        """A frame for an overview: JPEG is decoded at the smallest size that is still at least 1/`factor` of the full
        one (the DCT gives 1/2, 1/4, 1/8 for nearly nothing); everything else at full size. Raises CorruptFrame."""
        if self._syntax not in JPEG or factor < 2:
            return self(data)
        head = self._checked_head(data)
        try:
            if self._is_bare_rgb(head):
                image = self._decode(data, None, head)
            else:
                image = simplejpeg.decode_jpeg(data, colorspace="RGB", min_factor=factor, min_height=1, min_width=1)
        except Exception as error:
            raise CorruptFrame(_CORRUPT) from error
        return self._finished(image)

    def _checked_head(self, data: Bytes) -> Codestream | None:
        """What the codestream says of itself; the next frame mostly begins like the last one, and says the same."""
        rows, columns, _ = self._shape
        if len(data) > 2 * 3 * rows * columns + _MAX_OVERHEAD:
            raise CorruptFrame(f"{_CORRUPT} It is larger than the header says.")
        if self._reader is None:
            return None
        if self._last is not None and bytes(data[: self._last[1].length]) == self._last[0]:
            return self._last[1]
        try:
            head = self._reader(data)
        except (ValueError, IndexError, struct.error):
            raise CorruptFrame(_CORRUPT) from None
        if head.components != 3 or head.bits != 8:
            raise CorruptFrame(f"{_CORRUPT} It is not an 8-bit colour image.")
        if not (0 < head.rows <= rows and 0 < head.columns <= columns):
            raise CorruptFrame(f"{_CORRUPT} It is larger than the header says.")
        self._last = bytes(data[: head.length]), head
        return head

    def _finished(self, image: Image) -> Image:
        rows, columns, _ = self._shape
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise CorruptFrame(f"{_CORRUPT} It is not an 8-bit colour image.")
        if image.shape[0] > rows or image.shape[1] > columns:
            raise CorruptFrame(f"{_CORRUPT} It is larger than the header says.")
        return image if self._to_srgb is None else self._to_srgb(image)

    def _decode(self, data: Bytes, scratch: Image | None, head: Codestream | None) -> Image:
        if self._syntax in JPEG:
            return self._jpeg(data, scratch, head)
        if self._syntax in _LOSSLESS_JPEG:
            image = imagecodecs.jpeg8_decode(bytes(data), colorspace="RGB", outcolorspace="RGB")
        elif self._syntax in _JPEG_LS:
            image = imagecodecs.jpegls_decode(bytes(data))
        elif self._syntax in _JPEG_2000:
            # Converters write plain JPEG 2000 under the HTJ2K UIDs; OpenJPEG tells the two apart by the codestream.
            image = imagecodecs.jpeg2k_decode(bytes(data))
        elif self._syntax in _JPEG_XL:
            image = imagecodecs.jpegxl_decode(bytes(data))
        elif self._syntax in _RLE:
            codestream.check_run_lengths(data)
            image = self._planes(bytes(imagecodecs.dicomrle_decode(bytes(data), dtype=np.dtype(np.uint8))))
        elif self._planar:
            image = self._planes(data)
        else:
            image = np.frombuffer(data, np.uint8, count=self._shape[0] * self._shape[1] * 3).reshape(self._shape)
        # Only the decoders of JPEG 2000 and JPEG XL undo a transform; the others give what was encoded.
        undone = self._syntax in _JPEG_2000 | _JPEG_XL and head is not None and head.rgb is True
        return _from_ybr(image) if self._photometric in _YBR and not undone else image

    def _jpeg(self, data: Bytes, scratch: Image | None, head: Codestream | None) -> Image:
        if self._is_bare_rgb(head):
            image: Image = imagecodecs.jpeg8_decode(bytes(data), colorspace="RGB", outcolorspace="RGB")
        else:
            image = simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=scratch)
        return image

    def _is_bare_rgb(self, head: Codestream | None) -> bool:
        """JPEG of which the header says RGB and the stream nothing: libjpeg would guess YCbCr."""
        return self._photometric == "RGB" and head is not None and head.rgb is None

    def _planes(self, data: Bytes) -> Image:
        """Three colour planes one after the other: RLE always (PS3.5 G.2), uncompressed pixels by choice."""
        rows, columns, _ = self._shape
        planes = np.frombuffer(data, np.uint8, count=3 * rows * columns).reshape(3, rows, columns)
        return np.moveaxis(planes, 0, 2)


def _photometrics(transfer_syntax: str) -> set[str]:
    """The photometric interpretations of colour that PS3.5 8.2 allows in a transfer syntax, as far as they are read."""
    if transfer_syntax in NATIVE | _RLE:
        return {"RGB", "YBR_FULL"}
    if transfer_syntax in _LOSSLESS_JPEG | _JPEG_LS:
        return {"RGB", "YBR_FULL"}
    if transfer_syntax in _JPEG_2000:
        return {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}
    return {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "XYB"}


def visible(image: Image, height_px: int, width_px: int) -> Image:
    """The part of a frame that lies inside the pixel matrix. Raises CorruptFrame where the frame does not cover it."""
    height, width, _ = image.shape
    if height < height_px or width < width_px:
        raise CorruptFrame(f"{_CORRUPT} It is smaller than the header says.")
    return image if (height, width) == (height_px, width_px) else image[:height_px, :width_px]


def _from_ybr(image: Image) -> Image:
    ybr = image.astype(np.float32)
    ybr[..., 1:] -= 128.0
    rgb: Image = np.clip(np.rint(ybr @ _YBR_TO_RGB.T), 0, 255).astype(np.uint8)
    return rgb
