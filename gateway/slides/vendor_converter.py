"""Converts one vendor's slide file to DICOM with wsidicomizer. Runs in the import environment, as a program of its own.

wsidicomizer needs an older wsidicom than we do, and what it parses comes from anywhere: hence a process apart
(`gateway.slides.importing` starts it). It imports nothing of ours. The order comes as JSON in the first argument, the
answer goes to stdout as one line of JSON; what the libraries have to say stays on stderr.
"""

import errno
import json
import logging
import sys
from importlib.metadata import version
from typing import Any

from opentile.formats.svs.svs_metadata import SvsMetadata
from pydicom.uid import JPEG2000, JPEG2000Lossless
from wsidicom.codec.settings import Channels, Jpeg2kSettings, JpegSettings, Settings, Subsampling
from wsidicom.file import OffsetTableType
from wsidicom.geometry import SizeMm
from wsidicom.metadata import Image, Pyramid
from wsidicomizer.metadata import WsiDicomizerMetadata
from wsidicomizer.wsidicomizer import WsiDicomizer

_QUALITY = 90
"""Of JPEG levels that have to be encoded: added ones, and those whose source cannot pass through."""


def main() -> int:
    order = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.ERROR)
    try:
        answer = convert(**order)
    except NoSpacing:
        answer = {"problem": "no-spacing"}
    except NotImplementedError:
        answer = {"problem": "unknown-format"}
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        answer = {"problem": "disk-full"}
    except MemoryError:
        answer = {"problem": "memory"}
    print(json.dumps(answer))
    return 0


class NoSpacing(Exception):
    """The file does not say how large its pixels are."""


def convert(source: str, out: str, mpp: float | None, label: bool, extended_offsets: bool) -> dict[str, Any]:
    """Write the instances of `source` into the folder `out`, and say what came from the file itself.

    `mpp` in µm a pixel of the finest level replaces what the file says; `label` brings label and overview images too;
    `extended_offsets` for pixel data of more than 4 GiB.
    """
    metadata = None
    if mpp is not None:
        SvsMetadata.mpp = property(lambda _: mpp)  # read before any given metadata, and an error where it is absent
        image = Image(pixel_spacing=SizeMm(mpp / 1000, mpp / 1000))
        metadata = WsiDicomizerMetadata(pyramid=Pyramid(image, []))
    try:
        with WsiDicomizer.open(source, metadata, encoding=_jpeg(Channels.YBR)) as slide:
            encoding, answer = _described(slide)
    except KeyError as error:
        if error.args == ("MPP",):
            raise NoSpacing from None
        raise
    except ValueError as error:
        if "pixel spacing" in str(error):
            raise NoSpacing from None
        raise
    WsiDicomizer.convert(
        source,
        out,
        metadata,
        add_missing_levels=True,
        include_label=label,
        include_overview=label,
        include_thumbnail=False,
        encoding=encoding,
        offset_table=OffsetTableType.EXTENDED if extended_offsets else OffsetTableType.BASIC,
    )
    return answer


def _described(slide: WsiDicomizer) -> tuple[Settings, dict[str, Any]]:
    """How added levels are to be encoded, and what the source holds.

    wsidicomizer gives added levels the header of the finest one, and so they must have its colour space and syntax.
    """
    levels = list(slide.pyramids[0])
    image = levels[0].default_instance.image_data
    source = slide._source  # no public name gives what stood in the file
    if image.photometric_interpretation not in ("RGB", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"):
        raise NotImplementedError(image.photometric_interpretation)
    if image.transfer_syntax in (JPEG2000, JPEG2000Lossless):
        encoding: Settings = Jpeg2kSettings(levels=[0] if image.transfer_syntax == JPEG2000Lossless else [80])
    else:
        encoding = _jpeg(Channels.RGB if image.photometric_interpretation == "RGB" else Channels.YBR)
    paths = source.base_metadata.pyramid.optical_paths
    return encoding, {
        "converter": f"wsidicomizer {version('wsidicomizer')}",
        "native": [[level.size.width, level.size.height] for level in levels],
        "passed_through": image.transcoder is None,
        "icc": any(path.icc_profile is not None for path in paths or ()),
        "acquired": source.base_metadata.pyramid.image.acquisition_datetime is not None,
    }


def _jpeg(channels: Channels) -> JpegSettings:
    subsampling = Subsampling.R444 if channels is Channels.RGB else Subsampling.R422
    return JpegSettings(quality=_QUALITY, channels=channels, subsampling=subsampling)


if __name__ == "__main__":
    sys.exit(main())
