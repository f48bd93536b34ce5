"""`multipart/related` (RFC 2387, PS3.18 8.6.1.2) read as a stream: bounded memory, tolerant of what real PACS send."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_LENGTH = re.compile(r"[0-9]{1,18}")
_HEADER_BYTES = 16 * 1024
_PREAMBLE_BYTES = 64 * 1024


class MultipartError(ValueError):
    """The body is not a whole multipart. Never leaves this room: callers turn it into an ArchiveError."""


@dataclass(frozen=True, slots=True)
class MediaType:
    """A media type in lower case, and its boundary where it has one."""

    name: str
    boundary: str | None


@dataclass(frozen=True, slots=True)
class Part:
    """One part: header fields with lower-case names, and the body in pieces, to be read once."""

    headers: dict[str, str]
    body: Iterator[bytes]


def media_type(content_type: str) -> MediaType:
    """The media type of a Content-Type field.

    Lenient where servers differ: the boundary may be quoted or not, anywhere among the parameters, and another
    parameter's quoted value may itself hold parameters (`type="image/jpeg; transfer-syntax=…"`).
    """
    name, _, rest = content_type.partition(";")
    boundary = None
    for parameter in _split_outside_quotes(rest):
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "boundary":
            boundary = value.strip().strip('"') or None
    return MediaType(name.strip().lower(), boundary)


def _split_outside_quotes(text: str) -> list[str]:
    pieces, quoted = [""], False
    for character in text:
        quoted ^= character == '"'
        if character == ";" and not quoted:
            pieces.append("")
        else:
            pieces[-1] += character
    return pieces


def first_part(chunks: Iterable[bytes], boundary: str) -> Part:
    """The first part of a multipart body, read from `chunks` as its own body is read.

    The part is whole when the next delimiter was seen, or, where a server leaves out the closing delimiter, when the
    stream ended exactly at the part's own Content-Length. Memory is bounded by one chunk and a few kilobytes.

    Raises MultipartError, also while the body is read: no delimiter, no end of headers, or the stream ends early.
    """
    stream = iter(chunks)
    _, buffer = _read_until(stream, b"", b"--" + boundary.encode(), _PREAMBLE_BYTES)
    line, buffer = _read_until(stream, buffer, b"\n", _HEADER_BYTES)
    if line.startswith(b"--"):
        raise MultipartError("the multipart holds no part")
    headers, buffer = _headers(stream, buffer)
    return Part(headers, _body(stream, buffer, boundary, headers.get("content-length")))


def _read_until(stream: Iterator[bytes], buffer: bytes, mark: bytes, most: int) -> tuple[bytes, bytes]:
    while mark not in buffer:
        if len(buffer) > most:
            raise MultipartError("an expected mark is missing")
        chunk = next(stream, None)
        if chunk is None:
            raise MultipartError("the stream ended early")
        buffer += chunk
    before, _, after = buffer.partition(mark)
    return before, after


def _headers(stream: Iterator[bytes], buffer: bytes) -> tuple[dict[str, str], bytes]:
    headers: dict[str, str] = {}
    size = 0
    while True:
        line, buffer = _read_until(stream, buffer, b"\n", _HEADER_BYTES)
        line = line.strip()
        if not line:
            return headers, buffer
        size += len(line)
        if size > _HEADER_BYTES:
            raise MultipartError("the part's headers are too long")
        key, _, value = line.decode("latin-1").partition(":")
        headers[key.strip().lower()] = value.strip()


def _body(stream: Iterator[bytes], buffer: bytes, boundary: str, content_length: str | None) -> Iterator[bytes]:
    mark = b"\r\n--" + boundary.encode()
    declared = int(content_length) if content_length and _LENGTH.fullmatch(content_length) else None
    size = 0
    ended = False
    while not ended:
        found = buffer.find(mark)
        # What could be the beginning of the delimiter stays in the buffer until more has come.
        usable = found if found >= 0 else max(0, len(buffer) - len(mark) + 1)
        chunk: bytes | None = b""
        if found < 0:
            chunk = next(stream, None)
            if chunk is None:
                usable = len(buffer.removesuffix(b"\r\n")) if size + len(buffer) != declared else len(buffer)
                if size + usable != declared:
                    raise MultipartError("the stream ended in the middle of a part")
        if usable:
            size += usable
            yield buffer[:usable]
        ended = found >= 0 or chunk is None
        buffer = buffer[usable:] + (chunk or b"")
    if declared is not None and size != declared:
        raise MultipartError("the part is not as long as it says")
