"""Headers that say what is not so: absurd sizes and counts, hostile names, endless and bottomless structures."""

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from random import Random

import pydicom
from pydicom import DataElement, Dataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence
from pydicom.uid import UID

from tests.fuzz.structure import parts_of, pixel_data

Lie = Callable[[Random, Path], None]
_NUMBERS: tuple[object, ...] = (0, 1, 2, 3, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1)
_FRAMES = ("0", "-1", "2.5", "", "1e9", "999999", "2147483647", "4294967296", "abc", "1\\2", "99999999999999999999")
_SIZES = (
    "Rows",
    "Columns",
    "TotalPixelMatrixRows",
    "TotalPixelMatrixColumns",
    "TotalPixelMatrixFocalPlanes",
    "NumberOfOpticalPaths",
)
_UIDS = (
    "../../../../tmp/pathserve-fuzz-escape",
    "/tmp/pathserve-fuzz-escape",
    "..",
    "",
    "1.2\0/../../x",
    "1." + "2" * 80,
    "1.2.3/../4",
    "1.2.3\\1.2.4",
    "1..2",
    "1.02.3",
    "2.25.\u0661",
    "C:\\escape",
    "1.2.3\n4",
    "%2e%2e%2f",
    " 1.2.3 ",
)
_UID_KEYWORDS = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "FrameOfReferenceUID",
    "SOPInstanceUIDOfConcatenationSource",
    "ConcatenationUID",
)
_SPACINGS = ("0", "-0.0005", "nan", "inf", "1e-300", "1e300", "", "0.0005\\0.05", "50", "0.0000005", "0,0005", "0.0005")
_CHARSETS = ("ISO_IR 192", "ISO 2022 IR 87", "GB18030", "ISO_IR 999", "\\ISO 2022 IR 149", "UTF-16", "", "\\" * 40)
_SYNTAXES = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.103",
    "1.2.840.10008.1.2.4.110",
    "1.2.840.10008.1.2.4.201",
    "1.2.840.10008.1.2.5",
    "1.2.3.4",
    "",
)


def rewritten(path: Path, change: Callable[[Dataset], None]) -> None:
    """Change the header of a file and leave its pixel data as they are, to the byte. The header may be invalid."""
    data = path.read_bytes()
    pixels = pixel_data(data)
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    change(dataset)
    out = BytesIO()
    dcmwrite(out, dataset, enforce_file_format=False, overwrite=True)
    path.write_bytes(out.getvalue() + (b"" if pixels is None else data[pixels.start :]))


def _raw(dataset: Dataset, keyword: str, vr: str, value: bytes) -> None:
    """An element whose bytes nobody checks."""
    tag = pydicom.datadict.tag_for_keyword(keyword)
    dataset[tag] = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(tag), vr, len(value), value, 0, False, True)


def absurd_size(rng: Random, path: Path) -> None:
    def change(dataset: Dataset) -> None:
        for keyword in rng.sample(_SIZES, rng.randint(1, 3)):
            wide = keyword.startswith("TotalPixelMatrixR") or keyword.startswith("TotalPixelMatrixC")
            value = int(rng.choice(_NUMBERS))  # type: ignore[call-overload]
            if wide or keyword in ("TotalPixelMatrixFocalPlanes", "NumberOfOpticalPaths"):
                _raw(dataset, keyword, "UL", struct.pack("<I", value))
            else:
                _raw(dataset, keyword, "US", struct.pack("<H", value & 0xFFFF))

    rewritten(path, change)


def absurd_matrix(rng: Random, path: Path) -> None:
    """A matrix of 2^31 rows whose frames would fit it."""

    def change(dataset: Dataset) -> None:
        rows, columns = rng.choice(((2**31, 2**31), (2**31, 1), (2**20, 2**20), (65536, 65536), (2**17, 2**17)))
        _raw(dataset, "TotalPixelMatrixRows", "UL", struct.pack("<I", rows))
        _raw(dataset, "TotalPixelMatrixColumns", "UL", struct.pack("<I", columns))
        if rng.random() < 0.7:
            side = rng.choice((1, 16, 65535))
            _raw(dataset, "Rows", "US", struct.pack("<H", side))
            _raw(dataset, "Columns", "US", struct.pack("<H", side))
            tiles = -(-rows // side) * -(-columns // side)
            _raw(dataset, "NumberOfFrames", "IS", str(tiles).encode())

    rewritten(path, change)


def frames_lie(rng: Random, path: Path) -> None:
    rewritten(path, lambda dataset: _raw(dataset, "NumberOfFrames", "IS", rng.choice(_FRAMES).encode()))


def hostile_uid(rng: Random, path: Path) -> None:
    def change(dataset: Dataset) -> None:
        for keyword in rng.sample(_UID_KEYWORDS, rng.randint(1, 2)):
            value = rng.choice(_UIDS).encode()
            _raw(dataset, keyword, "UI", value)
            if keyword == "SOPInstanceUID" and rng.random() < 0.5:
                dataset.file_meta.MediaStorageSOPInstanceUID = value.decode("latin-1")

    rewritten(path, change)


def hostile_text(rng: Random, path: Path) -> None:
    """Names and numbers of the patient as no character set knows them, and far too long ones."""

    def change(dataset: Dataset) -> None:
        dataset.SpecificCharacterSet = rng.choice(_CHARSETS).split("\\")
        for keyword in ("PatientName", "PatientID", "AccessionNumber", "ContainerIdentifier", "StudyDescription"):
            filling = rng.choice((b"\x1b$B\x30", b"\xff\xfe", b"<script>", b"A" * 70_000, b"\0", b"^=^=", b"\xe4\xb8"))
            _raw(dataset, keyword, "UN" if rng.random() < 0.1 else "LO", filling)

    written = False
    while not written:  # pydicom cannot write every text in every character set
        with suppress(IndexError):
            rewritten(path, change)
            written = True


def wrong_spacing(rng: Random, path: Path) -> None:
    def change(dataset: Dataset) -> None:
        with suppress(AttributeError, IndexError):
            measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
            _raw(measures, "PixelSpacing", "DS", rng.choice(_SPACINGS).encode())
        if rng.random() < 0.3:
            _raw(dataset, "ImagedVolumeWidth", "FL", struct.pack("<f", rng.choice((0.0, -1.0, float("nan"), 1e30))))

    rewritten(path, change)


def wrong_syntax(rng: Random, path: Path) -> None:
    """The file meta information names another transfer syntax than that of the data."""
    data = path.read_bytes()
    meta = pydicom.filereader.read_file_meta_info(path)
    before = str(meta.TransferSyntaxUID).encode()
    after = rng.choice([uid for uid in _SYNTAXES if len(uid) <= len(before)]).encode()
    path.write_bytes(data.replace(before, after.ljust(len(before), b"\0"), 1))


def wrong_pixels(rng: Random, path: Path) -> None:
    """Samples, bits, colour space and planes that do not belong to the frames."""

    def change(dataset: Dataset) -> None:
        dataset.PhotometricInterpretation = rng.choice(
            ("RGB", "MONOCHROME2", "PALETTE COLOR", "YBR_FULL", "YBR_ICT", "XYB", "", "NONSENSE", "YBR_PARTIAL_420")
        )
        for keyword, values in (
            ("SamplesPerPixel", (0, 1, 3, 4, 65535)),
            ("BitsAllocated", (0, 1, 8, 12, 16, 32)),
            ("BitsStored", (0, 8, 16)),
            ("PlanarConfiguration", (0, 1, 7)),
        ):
            if rng.random() < 0.4:
                setattr(dataset, keyword, rng.choice(values))

    rewritten(path, change)


def attributes_gone(rng: Random, path: Path) -> None:
    def change(dataset: Dataset) -> None:
        tags = [element.tag for element in dataset]
        for tag in rng.sample(tags, rng.randint(1, max(1, len(tags) // 4))):
            del dataset[tag]

    rewritten(path, change)


def sequences_emptied(rng: Random, path: Path) -> None:
    """Sequences without items, with empty items, or with a thousand."""

    def change(dataset: Dataset) -> None:
        sequences = [element for element in dataset.iterall() if element.VR == "SQ"]
        for element in rng.sample(sequences, min(len(sequences), rng.randint(1, 3))):
            items = list(element.value)
            element.value = Sequence(rng.choice(([], [Dataset()], items * 1000, [Dataset()] * 1000)))

    rewritten(path, change)


def bottomless(rng: Random, path: Path) -> None:
    """Sequences nested 10,000 deep, in the slide's own or in a private element, with and without lengths."""
    depth = 10_000
    data = path.read_bytes()
    pixels = pixel_data(data)
    tag = rng.choice((b"\x40\x00\x55\x05", b"\x48\x00\x05\x01", b"\x65\x00\x01\x10"))
    if rng.random() < 0.7:
        opened = (tag + b"SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * depth
        closed = (b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0") * depth
        nested = opened + (closed if rng.random() < 0.7 else b"")
    else:
        nested = b""
        pieces = []
        for level in range(depth):
            inner = 20 * (depth - 1 - level)
            pieces.append(
                tag + b"SQ\0\0" + struct.pack("<I", inner + 8) + b"\xfe\xff\x00\xe0" + struct.pack("<I", inner)
            )
        nested = b"".join(pieces)
    at = pixels.start if pixels else len(data)
    path.write_bytes(data[:at] + nested + data[at:])


def endless(rng: Random, path: Path) -> None:
    """Hundreds of thousands of private elements, or millions of items in a sequence of the slide's own."""
    data = path.read_bytes()
    if rng.random() < 0.3:
        tag = b"\x01\x70\x00\x10"
        many = b"".join(struct.pack("<HH2sHI", 0x7001, 0x1000 + n % 0xE000, b"UL", 4, n) for n in range(200_000))
    else:
        tag = rng.choice((b"\x08\x00\x40\x11", b"\x40\x00\x60\x05", b"\x48\x00\x05\x01", b"\x01\x70\x10\x10"))
        items = b"\xfe\xff\x00\xe0\0\0\0\0" * rng.choice((400_000, 3_000_000))
        many = tag + b"SQ\0\0\xff\xff\xff\xff" + items + b"\xfe\xff\xdd\xe0\0\0\0\0"
    at = _place_of(data, tag)
    path.write_bytes(data[:at] + many + data[at:])


def _place_of(data: bytes, tag: bytes) -> int:
    """Where an element of this tag belongs among those of the data set itself."""
    inside = 0
    for part in parts_of(data):
        if part.start >= inside and part.vr and struct.unpack("<HH", part.tag) > struct.unpack("<HH", tag):
            return part.start
        if part.vr == b"SQ" and part.start >= inside and part.length != 0xFFFFFFFF:
            inside = part.value + part.length
    return len(data)


def deflate_bomb(rng: Random, path: Path) -> None:
    """A deflated data set (PS3.5 A.5) of a few megabytes that unpacks to gigabytes."""
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    meta = dataset.file_meta
    meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1.99")
    with path.open("wb") as out:
        out.write(bytes(128) + b"DICM")
        pydicom.filewriter.write_file_meta_info(out, meta, enforce_standard=False)
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        size = rng.choice((1 << 30, 3 << 30))
        out.write(packer.compress(b"\x10\x00\x10\x00UT\0\0" + struct.pack("<I", min(size, 0xFFFFFFFE))))
        # A full flush makes blocks that stand alone, so that one may be written over and over.
        head = packer.flush(zlib.Z_FULL_FLUSH)
        zeros = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
        out.write(head + zeros * (size >> 24) + packer.flush())


def sparse_anywhere(rng: Random, path: Path) -> None:
    """Frames outside the matrix, on top of each other, between the grid's lines, and fewer positions than frames."""

    def change(dataset: Dataset) -> None:
        groups = dataset.get("PerFrameFunctionalGroupsSequence")
        if not groups:
            dataset.DimensionOrganizationType = rng.choice(("TILED_SPARSE", "TILED_FULL", "3D", ""))
            return
        for group in rng.sample(list(groups), rng.randint(1, len(groups))):
            if not group.get("PlanePositionSlideSequence"):
                continue
            plane = group.PlanePositionSlideSequence[0]
            value = rng.choice((0, -1, 1, 129, 2**31 - 1, -(2**31), 65537, 2, 99999))
            keyword = rng.choice(("Row", "Column")) + "PositionInTotalImagePixelMatrix"
            _raw(plane, keyword, "SL", struct.pack("<i", value))
        if rng.random() < 0.3:
            dataset.PerFrameFunctionalGroupsSequence = list(groups)[: rng.randrange(len(groups))]
        elif rng.random() < 0.2:
            dataset.PerFrameFunctionalGroupsSequence = list(groups) * 50

    rewritten(path, change)


def wrong_profile(rng: Random, path: Path) -> None:
    """Colour profiles that are huge, cut short, noise, or of another colour space."""

    def change(dataset: Dataset) -> None:
        for optical in dataset.get("OpticalPathSequence") or ():
            profile = bytes(optical.get("ICCProfile") or bytes(128))
            kind = rng.randrange(6)
            if kind == 0:
                profile = profile[:4] + rng.randbytes(32 << 20)
            elif kind == 1:
                profile = profile[: rng.randrange(len(profile))]
            elif kind == 2:
                profile = rng.randbytes(len(profile))
            elif kind == 3:
                profile = profile[:16] + rng.choice((b"CMYK", b"GRAY", b"Lab ", b"2CLR")) + profile[20:]
            elif kind == 4:
                at = rng.randrange(128, max(129, len(profile)))
                profile = profile[:at] + rng.randbytes(16) + profile[at + 16 :]
            else:  # a table of 2^32 entries
                profile = profile[:128] + b"\xff\xff\xff\xff" + profile[132:]
            optical.ICCProfile = profile

    rewritten(path, change)


def parts_lie(rng: Random, path: Path) -> None:
    """A concatenation whose parts are missing, twice there, or somewhere else."""

    def change(dataset: Dataset) -> None:
        dataset.ConcatenationUID = "2.25.77"
        dataset.SOPInstanceUIDOfConcatenationSource = rng.choice(("2.25.78", str(dataset.SOPInstanceUID)))
        dataset.InConcatenationNumber = rng.choice((0, 1, 2, 65535))
        dataset.InConcatenationTotalNumber = rng.choice((0, 1, 2, 3, 65535))
        _raw(
            dataset,
            "ConcatenationFrameOffsetNumber",
            "UL",
            struct.pack("<I", rng.choice((0, 1, 5, 2**31, 2**32 - 1))),
        )

    rewritten(path, change)


def wrong_extended_table(rng: Random, path: Path) -> None:
    """Extended offset tables of any length and content, beside pixel data that have no use for them."""
    data = path.read_bytes()
    pixels = pixel_data(data)
    if pixels is None:
        return

    def table(tag: bytes) -> bytes:
        count = rng.choice((0, 1, 4, 30, 1000))
        values = [rng.choice((0, 8, 2**63, 2**64 - 1, len(data), rng.randrange(1 << 20))) for _ in range(count)]
        body = struct.pack(f"<{count}Q", *values)[: 8 * count - rng.choice((0, 0, 3))]
        return tag + b"OV\0\0" + struct.pack("<I", len(body)) + body

    tables = table(b"\xe0\x7f\x01\x00") + (table(b"\xe0\x7f\x02\x00") if rng.random() < 0.7 else b"")
    path.write_bytes(data[: pixels.start] + tables + data[pixels.start :])


def wrong_numbers(rng: Random, path: Path) -> None:
    """Text where numbers stand, infinities, and numbers of a thousand digits, anywhere in the header."""

    def change(dataset: Dataset) -> None:
        elements = [(holder, element) for holder in _datasets(dataset) for element in holder]
        numbers = [(holder, element) for holder, element in elements if element.VR in ("IS", "DS", "FD", "FL", "DT")]
        for holder, element in rng.sample(numbers, min(len(numbers), rng.randint(1, 4))):
            value = rng.choice((b"nan", b"inf", b"-1", b"1" * 1000, b"x", b"", b"1\\2\\3", b"\xff\xff\xff\xff"))
            tag, vr = element.tag, element.VR
            holder[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(value), value, 0, False, True)

    rewritten(path, change)


def _datasets(dataset: Dataset) -> Iterator[Dataset]:
    yield dataset
    for element in dataset:
        if isinstance(element, DataElement) and element.VR == "SQ":
            for item in element.value:
                yield from _datasets(item)


LIES: dict[str, Lie] = {
    function.__name__.replace("_", "-"): function
    for function in (
        absurd_size,
        absurd_matrix,
        frames_lie,
        hostile_uid,
        hostile_text,
        wrong_spacing,
        wrong_syntax,
        wrong_pixels,
        attributes_gone,
        sequences_emptied,
        bottomless,
        endless,
        deflate_bomb,
        sparse_anywhere,
        wrong_profile,
        parts_lie,
        wrong_extended_table,
        wrong_numbers,
    )
}
