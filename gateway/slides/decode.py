"""Decoding of one frame to RGB, by transfer syntax and photometric interpretation (PS3.5 8.2, PS3.3 C.7.6.3.1.2).

Every decoder used here releases the GIL, so a thread pool decodes on all cores.
"""

from collections.abc import Callable

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from gateway.operations.errors import CorruptFrame, InvalidSlide, UnsupportedTransferSyntax

Image = NDArray[np.uint8]
Bytes = bytes | memoryview
Decoder = Callable[[Bytes, Image | None], Image]
"""Decodes one frame to (rows, columns, 3) uint8 RGB, which may be a view of the scratch image where one is given."""

_JPEG = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"}
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
_NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1"}
SUPPORTED = frozenset(_JPEG | _LOSSLESS_JPEG | _JPEG_LS | _JPEG_2000 | _JPEG_XL | _RLE | _NATIVE)

# PS3.3 C.7.6.3.1.2: the full-range YCbCr of ITU-T T.871.
_YBR_TO_RGB = np.array([[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]], np.float32)


def check_transfer_syntax(uid: str) -> None:
    """Raise UnsupportedTransferSyntax unless frames of this transfer syntax can be decoded."""
    if uid not in SUPPORTED:
        raise UnsupportedTransferSyntax(
            f"The slide's pixels are in the transfer syntax {uid}, which cannot be decoded. Store or send the slide as "
            "JPEG baseline, JPEG 2000, HTJ2K, JPEG-LS, JPEG XL, RLE or uncompressed."
        )


def frame_decoder(transfer_syntax: str, photometric: str, rows: int, columns: int) -> Decoder:
    """The decoder for all frames of one image. Raises UnsupportedTransferSyntax, InvalidSlide (colour space).

    The decoder raises CorruptFrame where the bytes are damaged or hold more than the frame. They may hold less: some
    converters cut the frames of the right and lower edge (see `visible`).
    """
    check_transfer_syntax(transfer_syntax)
    shape = (rows, columns, 3)
    decode = _codec(transfer_syntax, photometric, shape)
    if photometric == "YBR_FULL" and transfer_syntax not in _JPEG:
        decode = _from_ybr(decode)
    elif photometric not in _PHOTOMETRIC or (photometric == "YBR_FULL_422" and transfer_syntax in _NATIVE | _RLE):
        raise InvalidSlide(
            f"The slide's photometric interpretation {photometric} cannot be read with its transfer syntax. Send the "
            "slide as RGB or as JPEG."
        )

    def checked(data: Bytes, scratch: Image | None) -> Image:
        try:
            image = decode(data, scratch)
        except Exception as error:
            # Codecs raise what they like; each means the same: these bytes are not the frame they should be.
            raise CorruptFrame(_CORRUPT) from error
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise CorruptFrame(f"{_CORRUPT} It is not an 8-bit colour image.")
        if image.shape[0] > rows or image.shape[1] > columns:
            raise CorruptFrame(f"{_CORRUPT} It is larger than the header says.")
        return image

    return checked


def visible(image: Image, height_px: int, width_px: int) -> Image:
    """The part of a frame that lies inside the pixel matrix. Raises CorruptFrame where the frame does not cover it."""
    height, width, _ = image.shape
    if height < height_px or width < width_px:
        raise CorruptFrame(f"{_CORRUPT} It is smaller than the header says.")
    return image if (height, width) == (height_px, width_px) else image[:height_px, :width_px]


_PHOTOMETRIC = {"RGB", "YBR_FULL_422", "YBR_FULL", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420", "XYB"}
_CORRUPT = "A frame of the slide is damaged and cannot be decoded. Send the slide to the archive again."


def _codec(transfer_syntax: str, photometric: str, shape: tuple[int, int, int]) -> Decoder:
    if transfer_syntax in _JPEG:
        return _jpeg_rgb_without_marker if photometric == "RGB" else _jpeg
    if transfer_syntax in _LOSSLESS_JPEG:
        return lambda data, _: imagecodecs.ljpeg_decode(bytes(data))
    if transfer_syntax in _JPEG_LS:
        return lambda data, _: imagecodecs.jpegls_decode(bytes(data))
    if transfer_syntax in _JPEG_2000:
        # Converters write plain JPEG 2000 under the HTJ2K UIDs; OpenJPEG tells the two apart by the codestream.
        return lambda data, _: imagecodecs.jpeg2k_decode(bytes(data))
    if transfer_syntax in _JPEG_XL:
        return lambda data, _: imagecodecs.jpegxl_decode(bytes(data))
    if transfer_syntax in _RLE:
        return lambda data, _: _run_length(data, shape)
    return lambda data, _: np.frombuffer(data, np.uint8, count=shape[0] * shape[1] * 3).reshape(shape)


def _jpeg(data: Bytes, scratch: Image | None) -> Image:
    image: Image = simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=scratch)
    return image


def _jpeg_rgb_without_marker(data: Bytes, scratch: Image | None) -> Image:
    """JPEG that the header calls RGB. A JFIF or Adobe marker in the stream wins (converters leave RGB in the header of
    YCbCr streams); without one, libjpeg would guess YCbCr, so the colour space is named."""
    start = bytes(data[:2048])
    tables_end = start.find(b"\xff\xda")
    start = start[: tables_end if tables_end > 0 else len(start)]
    if (b"\xff\xe0" in start and b"JFIF\0" in start) or (b"\xff\xee" in start and b"Adobe" in start):
        return _jpeg(data, scratch)
    image: Image = imagecodecs.jpeg8_decode(bytes(data), colorspace="RGB", outcolorspace="RGB")
    return image


def _run_length(data: Bytes, shape: tuple[int, int, int]) -> Image:
    """RLE holds the three colour planes one after the other (PS3.5 G.2)."""
    planes = np.frombuffer(imagecodecs.dicomrle_decode(bytes(data), dtype=np.dtype(np.uint8)), np.uint8)
    return np.moveaxis(planes.reshape(3, shape[0], shape[1]), 0, 2)


def _from_ybr(decode: Decoder) -> Decoder:
    def converted(data: Bytes, scratch: Image | None) -> Image:
        ybr = decode(data, scratch).astype(np.float32)
        ybr[..., 1:] -= 128.0
        rgb: Image = np.clip(np.rint(ybr @ _YBR_TO_RGB.T), 0, 255).astype(np.uint8)
        return rgb

    return converted


def decode_reduced(data: Bytes, transfer_syntax: str, photometric: str, decoder: Decoder, factor: float) -> Image:
    """A frame for an overview: JPEG is decoded at the smallest size that is still at least 1/`factor` of the full one
    (the DCT gives 1/2, 1/4, 1/8 for nearly nothing); everything else at full size. Raises CorruptFrame."""
    if transfer_syntax in _JPEG and photometric != "RGB" and factor >= 2:
        try:
            image: Image = simplejpeg.decode_jpeg(data, colorspace="RGB", min_factor=factor, min_height=1, min_width=1)
        except ValueError as error:
            raise CorruptFrame(_CORRUPT) from error
        return image
    return decoder(data, None)
