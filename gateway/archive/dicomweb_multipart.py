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
    """The first part of a multipart body, as `parts` gives it. Raises MultipartError, also where there is none."""
    for part in parts(chunks, boundary):
        return part
    raise MultipartError("the multipart holds no part")


def parts(chunks: Iterable[bytes], boundary: str) -> Iterator[Part]:
    """The parts of a multipart body, read from `chunks` as their own bodies are read, one after the other.

    A part is whole when the next delimiter was seen, or, where a server leaves out the closing delimiter, when the
    stream ended exactly at the part's own Content-Length. Memory is bounded by one chunk and a few kilobytes.

    Raises MultipartError, also while a body is read: no delimiter, no end of headers, or the stream ends early.
    """
    source = _Source(iter(chunks))
    delimiter = b"--" + boundary.encode()
    source.until(delimiter, _PREAMBLE_BYTES)
    while not source.begins_with(b"--"):
        source.until(b"\n", _HEADER_BYTES)
        headers = _headers(source)
        body = _body(source, delimiter, headers.get("content-length"))
        yield Part(headers, body)
        for _ in body:  # what the caller left unread
            pass
        if source.ended:
            return


class _Source:
    """The chunks as one stream, read at `at`; what was read is dropped when the next chunk comes."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self.data = b""
        self.at = 0
        self.ended = False

    def more(self) -> bool:
        """Take the next chunk; False at the end of the stream."""
        chunk = next(self._chunks, None)
        if chunk is None:
            self.ended = True
            return False
        self.data = self.data[self.at :] + chunk
        self.at = 0
        return True

    def until(self, mark: bytes, most: int) -> bytes:
        """The bytes before the mark; the stream goes on after it. Raises MultipartError."""
        while (found := self.data.find(mark, self.at)) < 0:
            if len(self.data) - self.at > most:
                raise MultipartError("an expected mark is missing")
            if not self.more():
                raise MultipartError("the stream ended early")
        before = self.data[self.at : found]
        self.at = found + len(mark)
        return before

    def begins_with(self, mark: bytes) -> bool:
        """Whether the mark comes next; it stays there."""
        while len(self.data) - self.at < len(mark) and self.more():
            pass
        return self.data.startswith(mark, self.at)


def _headers(source: _Source) -> dict[str, str]:
    headers: dict[str, str] = {}
    size = 0
    while line := source.until(b"\n", _HEADER_BYTES).strip():
        size += len(line)
        if size > _HEADER_BYTES:
            raise MultipartError("the part's headers are too long")
        key, _, value = line.decode("latin-1").partition(":")
        headers[key.strip().lower()] = value.strip()
    return headers


def _body(source: _Source, delimiter: bytes, content_length: str | None) -> Iterator[bytes]:
    mark = b"\r\n" + delimiter
    declared = int(content_length) if content_length and _LENGTH.fullmatch(content_length) else None
    if declared in (0, None) and source.begins_with(delimiter):
        source.at += len(delimiter)  # some end the headers of an empty part with the delimiter's own line break
        return
    size = 0
    while (found := source.data.find(mark, source.at)) < 0:
        # What could be the beginning of the delimiter stays until more has come.
        end = max(source.at, len(source.data) - len(mark) + 1)
        if end > source.at:
            piece = source.data[source.at : end]
            source.at = end
            size += len(piece)
            yield piece
        if not source.more():
            rest = source.data[source.at :]
            if size + len(rest) != declared:
                rest = rest.removesuffix(b"\r\n")
            if size + len(rest) != declared:
                raise MultipartError("the stream ended in the middle of a part")
            if rest:
                yield rest
            return
    piece = source.data[source.at : found]
    source.at = found + len(mark)
    if piece:
        yield piece
    if declared is not None and size + len(piece) != declared:
        raise MultipartError("the part is not as long as it says")
