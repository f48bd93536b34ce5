"""`pathserve import`: a vendor's slide file (SVS, NDPI, Philips TIFF, MRXS, …) becomes a folder of DICOM images."""

import json
import os
import re
import signal
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.misc import is_dicom

from gateway.operations.confined import run_confined
from gateway.operations.disk import is_full
from gateway.operations.errors import (
    DiskFull,
    InvalidInput,
    InvalidSetting,
    InvalidSlide,
    MissingPixelSpacing,
    PathserveError,
    TruncatedFile,
)
from gateway.slides.decode import JPEG
from gateway.slides.imported import Conversion, SlideFacts, rewrite
from gateway.slides.slide import LevelImage, Slide

_CONVERTER = Path(__file__).with_name("vendor_converter.py")
_LEAST_TIME_S, _S_PER_MB = 300.0, 2.0
"""A conversion takes 0.1 to 0.3 s a megabyte of passed-through JPEG, ten times that where pixels are encoded anew."""
_MEMORY_BYTES = 6 * 2**30
_MAX_MPP = 20.0
"""Coarser is no slide's finest level, but a resolution tag that counts screen dots."""
_JPEG_END = b"\xff\xd9"
_CHUNK = 256


def import_slide(
    source: Path, out: Path, facts: SlideFacts, *, environment: Path, mpp: float | None = None, label: bool = False
) -> tuple[Path, ...]:
    """Convert `source` into the folder `out`, which appears whole or not at all; give its files.

    Encoded tiles that DICOM can hold are copied unchanged, levels that the source lacks are added. `mpp` (µm a pixel)
    replaces the pixel spacing that the file states; `label` brings label and overview images, which often show names.
    `environment` is the virtual environment of `make setup-import`.

    Raises InvalidInput (no such file, unknown format, `out` in use), InvalidSetting (environment), MissingPixelSpacing,
    TruncatedFile, InvalidSlide, DiskFull.
    """
    interpreter = environment / "bin" / "python"
    if not interpreter.exists():
        raise InvalidSetting(
            "Vendor formats are converted in an environment of their own, which is not installed: run "
            "`make setup-import`, or set PATHSERVE_IMPORT_VENV to where it is."
        )
    if not source.is_file():
        raise InvalidInput(f"There is no file {source.name}. Name the slide's file, e.g. slide.svs or slide.mrxs.")
    if is_dicom(source):
        raise InvalidInput(
            f"{source.name} is DICOM already: analyse its folder with --slide, or send it to the archive."
        )
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InvalidInput("The folder given by --out holds files already. Name a new one: nothing is overwritten.")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".part", dir=out.parent) as part:
            converted, done = Path(part, "converted"), Path(part, "done")
            converted.mkdir()
            done.mkdir()
            conversion = _convert(source, converted, interpreter, mpp, label)
            _rewrite_all(converted, done, facts, conversion)
            _check(done, source.name, mpp)
            done.rename(out)
    except OSError as error:
        if is_full(error):
            raise DiskFull(_NO_ROOM) from None
        raise InvalidInput(f"The folder given by --out cannot be written ({error.strerror}). Name another.") from None
    return tuple(sorted(out.iterdir()))


_NO_ROOM = (
    "No space is left where --out lies. A conversion needs there, for a while, three times what the slide takes; "
    "nothing was written."
)


def _convert(source: Path, converted: Path, interpreter: Path, mpp: float | None, label: bool) -> Conversion:
    size = _bytes_of(source)
    order = {
        "source": str(source.resolve()),
        "out": str(converted.resolve()),
        "mpp": mpp,
        "label": label,
        "extended_offsets": size > 2 * 2**30,
    }
    try:
        done = run_confined(
            [interpreter, "-I", _CONVERTER, json.dumps(order)],
            timeout_s=_LEAST_TIME_S + size / 1e6 * _S_PER_MB,
            memory_bytes=_MEMORY_BYTES,
            # Its working files lie beside the result, not in a /tmp that may be memory.
            environment={"PATH": os.defpath, "LANG": "C.UTF-8", "TMPDIR": str(converted.resolve().parent)},
        )
    except subprocess.TimeoutExpired as error:
        raise InvalidSlide(
            f"The conversion of {source.name} did not end within {error.timeout:.0f} s and was stopped."
        ) from None
    if done.returncode < 0:
        raise InvalidSlide(
            f"The conversion of {source.name} was killed ({signal.Signals(-done.returncode).name}): most often memory "
            "ran out. Nothing was written; try again with more of it."
        )
    answer = _answer(done)
    if "problem" in answer:
        raise _error(answer["problem"], source.name)
    return Conversion(
        converter=answer["converter"],
        native=tuple((int(width), int(height)) for width, height in answer["native"]),
        passed_through=answer["passed_through"],
        icc=answer["icc"],
        acquired=answer["acquired"],
        mpp=mpp,
    )


def _bytes_of(source: Path) -> int:
    """The size of a slide: its file, and for MRXS the folder of the same name beside it."""
    beside = source.with_suffix("")
    files = [source, *(beside.rglob("*") if beside.is_dir() else ())]
    return sum(file.stat().st_size for file in files if file.is_file())


def _answer(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        # An exception of the libraries, of which there is no closed set; its last line names it.
        kind = re.match(r"[\w.]*", done.stderr.rstrip().rpartition("\n")[2])
        answer = {"problem": kind.group().rpartition(".")[2] if kind else ""}
    return answer


def _error(problem: str, name: str) -> PathserveError:
    match problem:
        case "unknown-format":
            return InvalidInput(
                f"{name} is no brightfield slide in a format that can be imported. Aperio SVS, Hamamatsu NDPI, Philips "
                "TIFF, MRXS and what else OpenSlide reads can."
            )
        case "no-spacing":
            return _no_spacing(name)
        case "disk-full":
            return DiskFull(_NO_ROOM)
        case "memory" | "MemoryError" | "_ArrayMemoryError":
            return InvalidSlide(f"The conversion of {name} needs more memory than it may take. Nothing was written.")
        case "ModuleNotFoundError" | "ImportError":
            return InvalidSetting("The environment that converts vendor formats is damaged: run `make setup-import`.")
        case _:
            return InvalidSlide(
                f"{name} cannot be converted ({problem or 'no reason given'}): it is damaged or incomplete. Copy it "
                "from the scanner again."
            )


def _no_spacing(name: str) -> MissingPixelSpacing:
    return MissingPixelSpacing(
        f"{name} does not say how large its pixels are, so nothing on it could be measured. If you know it, give "
        "--mpp with the micrometres per pixel; the header will say that you did."
    )


def _rewrite_all(converted: Path, done: Path, facts: SlideFacts, conversion: Conversion) -> None:
    """Give every instance its header and a name that says what it is. What was copied is removed at once."""
    groups: dict[tuple[str, int], list[Path]] = defaultdict(list)
    for file in sorted(converted.glob("*.dcm")):
        header = dcmread(file, stop_before_pixels=True)
        groups[header.ImageType[2], -int(header.TotalPixelMatrixColumns)].append(file)
    numbers: dict[str, int] = defaultdict(int)
    for (role, _), files in sorted(groups.items()):
        name = f"level-{numbers[role]}" if role == "VOLUME" else role.lower()
        for plane, file in enumerate(files):
            target = done / (f"{name}-{plane}.dcm" if len(files) > 1 else f"{name}.dcm")
            rewrite(file, target, facts, conversion)
            file.unlink()
        numbers[role] += 1


def _check(folder: Path, name: str, mpp: float | None) -> None:
    """What was converted opens, and no frame of it breaks off: the converter copies half a tile without a word."""
    try:
        slide = Slide.open(sorted(folder.iterdir()))
    except MissingPixelSpacing:
        raise _no_spacing(name) from None
    with slide:
        if mpp is None and slide.levels[0].mpp > _MAX_MPP:
            raise _no_spacing(name)
        for image in slide.images:
            if image.level.transfer_syntax_uid in JPEG and not _frames_end(image):
                raise TruncatedFile(f"{name} is incomplete: tiles of it break off. Copy it from the scanner again.")


def _frames_end(image: LevelImage) -> bool:
    count = int(image.frame_at_RC.max()) + 1
    return all(
        not frame or bytes(frame[-4:]).rstrip(b"\0").endswith(_JPEG_END)
        for first in range(0, count, _CHUNK)
        for frame in image.read_frames(range(first, min(first + _CHUNK, count)))
    )
