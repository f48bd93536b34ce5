"""Frames by WADO-RS (PS3.18 10.4.1.1.6), many a request, exactly as they are stored: nothing transcoded is taken."""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import httpx

from gateway.archive.cache import Room
from gateway.archive.dicomweb_files import InstanceId
from gateway.archive.dicomweb_http import Session, Transient
from gateway.archive.dicomweb_multipart import MultipartError, Part, media_type, parts
from gateway.archive.metrics import PACS_BYTES
from gateway.archive.partial import PartialInstance
from gateway.operations.errors import PathserveError

_REFUSED = (400, 404, 406, 409, 414, 415)
_URL_BYTES = 8000
"""nginx, Apache and others refuse a request line of more than 8 KiB."""
_FRAME_BYTES = 64 * 2**20
_LOCATION = re.compile(r"(?:/instances/([0-9.]+))?/frames/([0-9]{1,9})/?\Z")
_PARAMETER = re.compile(r"transfer-syntax=\"?([0-9.]+)", re.IGNORECASE)
_NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}

# The media type of each family of transfer syntaxes (PS3.18 8.7.3), and how its frames begin (ISO/IEC 10918-1 B,
# 14495-1 C, 15444-1 A, 18181-2). For JPEG and JPEG-LS the frame header that follows tells the process.
_JPEG = "1.2.840.10008.1.2.4."
_JPEG_PROCESSES = {"50": (0xC0, 0xC1, 0xC2), "51": (0xC0, 0xC1, 0xC2), "57": (0xC3,), "70": (0xC3,)}
_JPEG_LS = {"80": (0xF7,), "81": (0xF7,)}
_SOI = b"\xff\xd8"
_JPEG_2000 = (b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP")
_JPEG_XL = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL")


class FramesRefused(Exception):
    """The PACS does not give these frames as they are stored. Never leaves this room: the whole instance is pulled."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """Frames that one request brought: how many, their bytes, and the seconds until the first came, and in all."""

    frames: int
    size: int
    wait_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Stored:
    """An instance and how its frames are stored: transfer syntax, and bytes of a decoded frame (0 = not known)."""

    instance: InstanceId
    syntax: str
    raw_frame_bytes: int


class FrameRequests:
    """How one archive is asked for frames. What it takes is found out once and remembered."""

    def __init__(self) -> None:
        self._form: int | None = None
        self._most: int | None = None

    def batch(self, wanted: InstanceId, missing: Sequence[int], url: str) -> Sequence[int]:
        """As many of the missing frames as one request can name; `url` is the archive's own part of the address."""
        room = _URL_BYTES - len(url) - len(_path(wanted, ()))
        count = 0
        while count < len(missing) and (room := room - len(str(missing[count] + 1)) - 1) > 0:
            count += 1
        return missing[: max(1, min(count, self._most or count))]

    def pull(
        self,
        session: Session,
        part: PartialInstance,
        stored: Stored,
        frames: Sequence[int],
        room: Room,
    ) -> Pulled:
        """Add some of the frames (a batch, or fewer where the archive takes no more) to `part`.

        Frames that came before an answer broke off are kept. Raises FramesRefused, Transient, ArchiveUnavailable,
        ArchiveRefused, Cancelled; OSError.
        """
        shortened = False
        while True:
            for form in range(_FORMS) if self._form is None else (self._form,):
                pulled = self._ask(session, part, stored, frames, room, form)
                if pulled is not None:
                    self._form = form
                    self._most = len(frames) if shortened else self._most
                    return pulled
            if len(frames) == 1:
                raise FramesRefused
            # Too many at once, or none at all: one alone tells, and the form in which it comes.
            frames = frames[: len(frames) // 2 if self._form is not None else 1]
            shortened = True

    def _ask(
        self,
        session: Session,
        part: PartialInstance,
        stored: Stored,
        frames: Sequence[int],
        room: Room,
        form: int,
    ) -> Pulled | None:
        """The frames that came; None where the PACS refuses this form, or answers otherwise than asked."""
        path, accept = _path(stored.instance, frames), _accept(form, stored.syntax)
        began = time.monotonic()
        with session.request("frames", "GET", path, headers={"Accept": accept}) as response:
            if response.status_code in _REFUSED:
                return None
            answer = _Answer(session, response, stored, frames, room)
            try:
                size = part.append(answer)
            except _OtherwiseThanAsked:
                return None
            PACS_BYTES.labels("received").inc(size)
            if answer.broken is not None:
                raise answer.broken
            return Pulled(len(answer.came), size, answer.first_at - began, time.monotonic() - began)


_FORMS = 3


def _accept(form: int, syntax: str) -> str:
    """Pass-through in the words that servers take: any stored syntax, this one by its own media type, this one."""
    kind = "application/octet-stream" if form != 1 else _media(syntax)
    return f'multipart/related; type="{kind}"; transfer-syntax={"*" if form == 0 else syntax}'


def _path(wanted: InstanceId, frames: Sequence[int]) -> str:
    numbers = ",".join(str(frame + 1) for frame in frames)
    return f"/studies/{wanted.study}/series/{wanted.series}/instances/{wanted.sop}/frames/{numbers}"


class _OtherwiseThanAsked(Exception):
    """Another media type, another transfer syntax, or other frames."""


class _Answer:
    """The frames of an answer by number. Ends early, with the reason in `broken`, where the answer breaks off."""

    def __init__(
        self, session: Session, response: httpx.Response, stored: Stored, frames: Sequence[int], room: Room
    ) -> None:
        self._session = session
        self._response = response
        self._stored = stored
        self._asked = frames
        self._room = room
        self._expected = frozenset(frames)
        self._stated: str | None = None
        self.came: set[int] = set()
        self.first_at = time.monotonic()
        self.broken: Exception | None = None

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        came = self.came
        labelled = True
        try:
            for order, part in enumerate(self._parts()):
                if order == 0:
                    self.first_at = time.monotonic()
                number = _number(part, self._stored.instance)
                labelled &= number is not None
                if order == len(self._asked):
                    raise _OtherwiseThanAsked
                frame = self._asked[order] if number is None else number
                if frame in came or frame not in self._expected:
                    raise _OtherwiseThanAsked
                data = self._data(part)
                self._room.take(len(data))
                came.add(frame)
                yield frame, data
        except MultipartError:
            self.broken = Transient("The PACS broke off in the middle of the frames that it sent.")
        except (PathserveError, httpx.HTTPError, httpx.StreamError) as error:
            self.broken = error
        else:
            # Without their numbers nobody knows which frames are missing.
            if not came or (len(came) < len(self._asked) and not labelled):
                raise _OtherwiseThanAsked

    def _parts(self) -> Iterator[Part]:
        content_type = self._response.headers.get("content-type", "")
        kind = media_type(content_type)
        pieces = self._session.pieces(self._response, self._session.limits.instance_bytes)
        stated = _PARAMETER.search(content_type)
        self._stated = stated[1] if stated else None
        if kind.name == "multipart/related" and kind.boundary:
            yield from parts(pieces, kind.boundary)
        elif len(self._asked) == 1:
            yield Part({"content-type": content_type}, pieces)
        else:
            raise _OtherwiseThanAsked

    def _data(self, part: Part) -> bytes:
        content_type = part.headers.get("content-type", "application/octet-stream")
        found = _PARAMETER.search(content_type)
        stated = found[1] if found else self._stated
        kind = media_type(content_type).name
        if not (kind == "application/octet-stream" or kind.startswith("image/")):
            raise _OtherwiseThanAsked
        syntax = self._stored.syntax
        # Native frames of 8 bits are the same bytes in every native syntax.
        if stated not in (None, syntax) and not (stated in _NATIVE and syntax in _NATIVE):
            raise _OtherwiseThanAsked
        pieces: list[bytes] = []
        size = 0
        for piece in part.body:
            size += len(piece)
            if size > _FRAME_BYTES:
                raise _OtherwiseThanAsked
            pieces.append(piece)
        data = b"".join(pieces)
        if data and not _looks_as(self._stored, data):
            raise _OtherwiseThanAsked
        return data


def _number(part: Part, instance: InstanceId) -> int | None:
    """The frame (0-based) that the part says it is, by its Content-Location; -1 where that is another instance's."""
    found = _LOCATION.search(part.headers.get("content-location", ""))
    if found is None:
        return None
    return int(found[2]) - 1 if found[1] in (None, instance.sop) else -1


def _media(syntax: str) -> str:
    last = syntax.removeprefix(_JPEG) if syntax.startswith(_JPEG) else ""
    if last in _JPEG_PROCESSES:
        return "image/jpeg"
    if last in _JPEG_LS:
        return "image/jls"
    if last in ("90", "91"):
        return "image/jp2"
    if last in ("201", "202", "203"):
        return "image/jphc"
    if last in ("110", "111", "112"):
        return "image/jxl"
    return "image/dicom-rle" if syntax == "1.2.840.10008.1.2.5" else "application/octet-stream"


def _looks_as(stored: Stored, data: bytes) -> bool:
    """Whether a frame looks as its transfer syntax says: the last guard against what was transcoded unsaid."""
    if stored.syntax in _NATIVE:
        return stored.raw_frame_bytes in (0, len(data), len(data) - 1)
    last = stored.syntax.removeprefix(_JPEG) if stored.syntax.startswith(_JPEG) else ""
    processes = {**_JPEG_PROCESSES, **_JPEG_LS}.get(last)
    if processes is not None:
        return data.startswith(_SOI) and _process(data) in processes
    if last in ("90", "91", "201", "202", "203"):
        return data.startswith(_JPEG_2000)
    if last in ("110", "111", "112"):
        return data.startswith(_JPEG_XL)
    return stored.raw_frame_bytes == 0 or len(data) < stored.raw_frame_bytes


def _process(data: bytes) -> int | None:
    """The marker of a JPEG or JPEG-LS frame header (SOFn): it tells the process."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            return marker
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
