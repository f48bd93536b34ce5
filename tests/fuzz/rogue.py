"""A DICOMweb server that holds one slide rightly and misbehaves at one kind of request, byte by byte as it pleases."""

import gzip
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom
from pydicom.encaps import generate_frames

from tests.fuzz.damage import DAMAGES
from tests.fuzz.lies import LIES

KINDS = ("find", "metadata", "frames", "instance", "store")
_EDGE = "edge-of-a-part"
_JSON = "application/dicom+json"
_UIDS = ("../../../x", "/etc/passwd", "1.2\0", "1" * 90, "", "1.2.3/../../4", "..%2f..%2fx")


@dataclass(frozen=True, slots=True)
class Request:
    """What the client asked: `kind` is one of KINDS."""

    kind: str
    path: str
    offset: int


@dataclass
class Rogue:
    """The server's slide, and how it answers one kind of request."""

    rng: Random
    folder: Path
    victim: str
    misbehave: "Answer"
    address: str = ""
    seen: Callable[[Request], None] = lambda request: None
    headers: dict[str, pydicom.Dataset] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for file in sorted(self.folder.glob("*.dcm")):
            dataset = pydicom.dcmread(file, stop_before_pixels=True)
            dataset.filename = str(file)
            self.headers[str(dataset.SOPInstanceUID)] = dataset

    @property
    def study(self) -> str:
        return str(next(iter(self.headers.values())).StudyInstanceUID)

    def file_of(self, path: str) -> Path:
        sop = path.partition("/instances/")[2].partition("/")[0]
        return Path(self.headers[sop].filename if sop in self.headers else next(iter(self.headers.values())).filename)


Answer = Callable[[Rogue, Request, socket.socket], None]


def _send(connection: socket.socket, status: int, kind: str, body: bytes, **more: str) -> None:
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"Content-Type: {kind}"] if kind else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in more.items()]
    connection.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)


def _multipart(parts: list[bytes], kind: str) -> tuple[str, bytes]:
    body = b"".join(f"--{_EDGE}\r\nContent-Type: {kind}\r\n\r\n".encode() + part + b"\r\n" for part in parts)
    name = kind.partition(";")[0]
    return f'multipart/related; type="{name}"; boundary={_EDGE}', body + f"--{_EDGE}--\r\n".encode()


def _right(rogue: Rogue, request: Request) -> tuple[int, str, bytes]:
    """The right answer: status, content type, body."""
    if request.kind == "store":
        return 200, _JSON, b"{}"
    if request.kind == "find":
        if request.offset:
            return 200, _JSON, b"[]"
        series = "/instances" not in request.path
        matches = [
            {
                "00080018": {"vr": "UI", "Value": [sop]},
                "0020000D": {"vr": "UI", "Value": [str(header.StudyInstanceUID)]},
                "0020000E": {"vr": "UI", "Value": [str(header.SeriesInstanceUID)]},
                "00080060": {"vr": "CS", "Value": ["SM"]},
                "00201209": {"vr": "IS", "Value": [len(rogue.headers)]},
            }
            for sop, header in rogue.headers.items()
        ]
        return 200, _JSON, json.dumps(matches[:1] if series else matches).encode()
    if request.kind == "metadata":
        one = "/instances/" in request.path
        files = [rogue.file_of(request.path)] if one else [Path(header.filename) for header in rogue.headers.values()]
        return 200, _JSON, json.dumps([_metadata(rogue, file) for file in files]).encode()
    file = rogue.file_of(request.path)
    if request.kind == "frames":
        dataset = pydicom.dcmread(file)
        frames = list(generate_frames(dataset.PixelData, number_of_frames=int(dataset.NumberOfFrames)))
        numbers = [int(number) for number in request.path.rpartition("/")[2].split(",")]
        kind = f"image/jpeg; transfer-syntax={dataset.file_meta.TransferSyntaxUID}"
        return 200, *_multipart([frames[number - 1] for number in numbers], kind)
    return 200, *_multipart([file.read_bytes()], "application/dicom")


def _metadata(rogue: Rogue, file: Path) -> dict[str, Any]:
    """A header in DICOM JSON; colour profiles by reference, as PACS do."""
    dataset = pydicom.dcmread(file, stop_before_pixels=True)
    found: dict[str, Any] = dataset.to_json_dict()
    found["00083002"] = {"vr": "UI", "Value": [str(dataset.file_meta.TransferSyntaxUID)]}
    at = f"{rogue.address.replace('dicomweb:', 'http:')}"
    at += f"/studies/{rogue.study}/series/{dataset.SeriesInstanceUID}/instances/{dataset.SOPInstanceUID}/bulk/1"
    for path in found.get("00480105", {}).get("Value", ()):
        if path.get("00282000", {}).pop("InlineBinary", None):
            path["00282000"]["BulkDataURI"] = at
    return found


def hang(rogue: Rogue, request: Request, connection: socket.socket) -> None:
    time.sleep(30)


def reset(rogue: Rogue, request: Request, connection: socket.socket) -> None:
    """A reset before the answer, in its head, or in its body."""
    status, kind, body = _right(rogue, request)
    if rogue.rng.random() < 0.7:
        head = f"HTTP/1.1 {status} OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        data = head + body
        connection.sendall(data[: rogue.rng.randrange(len(data))])
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def html(rogue: Rogue, request: Request, connection: socket.socket) -> None:
    body = b"<!doctype html><title>Sign in</title>" * rogue.rng.choice((1, 5000))
    _send(connection, 200, rogue.rng.choice(("text/html", _JSON, "application/dicom", "")), body)


def half_body(rogue: Rogue, request: Request, connection: socket.socket) -> None:
    """The answer stops half way: closed early, chunked without an end, or a length that never comes."""
    status, kind, body = _right(rogue, request)
    cut = body[: rogue.rng.randrange(len(body) + 1)]
    head = f"HTTP/1.1 {status} OK\r\nContent-Type: {kind}\r\nConnection: close\r\n".encode()
    ending = rogue.rng.randrange(3)
    if ending == 0:
        connection.sendall(head + b"\r\n" + cut)
    elif ending == 1:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(cut) + cut + b"\r\n")
    else:
        connection.sendall(head + f"Content-Length: {len(body) + 5}\r\n\r\n".encode() + cut)


def gzip_bomb(rogue: Rogue, request: Request, connection: socket.socket) -> None:
    """A gigabyte in a megabyte, as the client asked it not to be sent."""
    packed = gzip.compress(bytes(1 << 26), 9)
    kind = _right(rogue, request)[1]
    _send(connection, 200, kind, packed * 16, Content_Encoding=rogue.rng.choice(("gzip", "deflate", "gzip, gzip")))


def no_content(rogue: Rogue, request: Request, connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")


def any_status(rogue: Rogue, request: Request, connection: socket.socket) -> None:
    status, kind, body = _right(rogue, request)
    status = rogue.rng.choice((201, 202, 206, 300, 304, 400, 401, 403, 404, 406, 409, 410, 414, 429, 500, 503, 599))
    _send(connection, status, kind, body, Retry_After=rogue.rng.choice(("1", "99999999", "-1", "never", "")))


def endless_list(rogue: Rogue, request: Request, connection: socket.socket) -> None:
    """Every page has news."""
    matches = [
        {tag: {"vr": "UI", "Value": [f"2.25.{request.offset + number}"]} for tag in ("00080018", "0020000E")}
        | {"00080060": {"vr": "CS", "Value": ["SM"]}}
        for number in range(500)
    ]
    _send(connection, 200, _JSON, json.dumps(matches).encode())


def endless_body(rogue: Rogue, request: Request, connection: socket.socket) -> None:
    status, kind, body = _right(rogue, request)
    head = f"HTTP/1.1 {status} OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n".encode()
    connection.sendall(head + rogue.rng.choice((body[:-20], b"[", b"")))
    filling = rogue.rng.choice((bytes(1 << 16), b"[" * (1 << 16), b"\r\n--" * (1 << 14), b" " * (1 << 16)))
    for _ in range(1 << 15):
        connection.sendall(filling)


def slow(rogue: Rogue, request: Request, connection: socket.socket) -> None:
    """A byte every fifth of a second: never silent, never done."""
    status, kind, body = _right(rogue, request)
    head = f"HTTP/1.1 {status} OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for byte in head + body if rogue.rng.random() < 0.5 else body:
        if byte == head[0]:
            connection.sendall(head)
        connection.sendall(bytes((byte,)))
        time.sleep(0.2)


def hostile_json(rogue: Rogue, request: Request, connection: socket.socket) -> None:
    """JSON that is none, bottomless, of the wrong types, and UIDs that lead elsewhere."""
    rng = rogue.rng
    uid = rng.choice(_UIDS)
    match = {tag: {"vr": "UI", "Value": [uid]} for tag in ("00080018", "0020000E", "0020000D")}
    body = rng.choice(
        (
            b"[" * 200_000,
            b'{"a":' * 200_000,
            b"[1,2,3]",
            b'[{"00080018":5}]',
            b'[{"00080018":{"Value":{"a":1}}}]',
            b'[{"00080018":{"Value":[null]},"0020000E":{"Value":[[]]}}]',
            b"[NaN]",
            b"9" * 100_000,
            b'"\\ud800"',
            b"\xff\xfe[]",
            json.dumps([match]).encode(),
            json.dumps([match] * 3).encode(),
        )
    )
    _send(connection, 200, _JSON, body)


def hostile_multipart(rogue: Rogue, request: Request, connection: socket.socket) -> None:
    """Boundaries that are not there or too long, thousands of parts, headers without an end."""
    rng = rogue.rng
    _, kind, body = _right(rogue, request)
    edge = f"--{_EDGE}\r\n".encode()
    body = rng.choice(
        (
            b"",
            edge,
            edge * 50_000,
            edge + b"X: y\r\n" * 100_000,
            edge + b"A" * (1 << 20),
            body.replace(edge, b"--other\r\n"),
            body + body,
            f"--{_EDGE}--\r\n".encode(),
            (edge + b"Content-Type: image/jpeg\r\n\r\n\r\n") * 3000,
        )
    )
    kind = rng.choice(
        (kind, "multipart/related", f"multipart/related; boundary={'b' * 5000}", "multipart/related; boundary=")
    )
    _send(connection, 200, kind, body)


def wrong_kind(rogue: Rogue, request: Request, connection: socket.socket) -> None:
    """The right bytes under another media type or transfer syntax."""
    _, _, body = _right(rogue, request)
    for before, after in ((b"4.50", b"4.70"), (b"image/jpeg", b"image/jp2 ")):
        if rogue.rng.random() < 0.5:
            body = body.replace(before, after)
    kind = rogue.rng.choice(("image/jpeg", "application/octet-stream", "text/plain", _JSON, "application/dicom"))
    _send(connection, 200, kind, body)


def other_object(rogue: Rogue, request: Request, connection: socket.socket) -> None:
    """A damaged instance, or another one, in a whole answer."""
    rng = rogue.rng
    data = bytearray(rogue.file_of(request.path if rng.random() < 0.7 else "").read_bytes())
    data = DAMAGES[rng.choice(sorted(DAMAGES))](rng, data)
    _send(connection, 200, *_multipart([bytes(data)], "application/dicom"))


def lying_metadata(rogue: Rogue, request: Request, connection: socket.socket) -> None:
    """Metadata of a slide whose header lies, or whose bulk data lie on another server."""
    rng = rogue.rng
    if request.kind != "metadata":
        hostile_json(rogue, request, connection)
        return
    copy = rogue.folder.parent / "copy.dcm"
    found = []
    for header in rogue.headers.values():
        copy.write_bytes(Path(header.filename).read_bytes())
        lie = rng.choice(("absurd-size", "frames-lie", "hostile-uid", "wrong-spacing", "attributes-gone"))
        LIES[lie](rng, copy)
        with suppress(Exception):  # what pydicom itself cannot say in JSON is not sent
            found.append(_metadata(rogue, copy))
    uri = rng.choice(
        ("file:///etc/passwd", "http://127.0.0.1:9/x", "//127.0.0.1:9/x", "../../../../x", "http://[", "/b")
    )
    for match in found:
        for element in match.values():
            if isinstance(element, dict) and rng.random() < 0.1:
                element.pop("Value", None)
                element["BulkDataURI"] = uri
    _send(connection, 200, _JSON, json.dumps(found).encode())


def other_frames(rogue: Rogue, request: Request, connection: socket.socket) -> None:
    """Fewer parts than asked for, more, the others, empty ones, noise."""
    if request.kind != "frames":
        other_object(rogue, request, connection)
        return
    rng = rogue.rng
    _, kind, body = _right(rogue, request)
    edge = f"--{_EDGE}\r\n".encode()
    parts = body.removesuffix(f"--{_EDGE}--\r\n".encode()).split(edge)[1:]
    choice = rng.randrange(5)
    if choice == 0:
        parts = parts[: rng.randrange(len(parts))]
    elif choice == 1:
        parts = parts * rng.choice((2, 3000))
    elif choice == 2:
        rng.shuffle(parts)
    elif choice == 3:
        parts = [part.partition(b"\r\n\r\n")[0] + b"\r\n\r\n\r\n" for part in parts]
    else:
        parts = [part.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + rng.randbytes(900) + b"\r\n" for part in parts]
    _send(connection, 200, kind, b"".join(edge + part for part in parts) + f"--{_EDGE}--\r\n".encode())


def redirect(rogue: Rogue, request: Request, connection: socket.socket) -> None:
    where = rogue.rng.choice(
        ("http://127.0.0.1:9/", "/", "file:///etc/passwd", rogue.address.replace("dicomweb", "http"))
    )
    _send(connection, rogue.rng.choice((301, 302, 307, 308)), "", b"", Location=where)


def no_http(rogue: Rogue, request: Request, connection: socket.socket) -> None:
    connection.sendall(
        rogue.rng.choice(
            (
                b"SSH-2.0-OpenSSH\r\n",
                b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
                b"HTTP/1.1 200 OK\r\nX: " + b"y" * (1 << 20),
                b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
                b"\0" * 4096,
                b"",
            )
        )
    )


def store_answers(rogue: Rogue, request: Request, connection: socket.socket) -> None:
    """An answer to a store that is a failure, a warning, or about another object."""
    item = {"00081155": {"vr": "UI", "Value": [rogue.rng.choice(("2.25.1", *_UIDS))]}}
    code = {"vr": "US", "Value": [rogue.rng.choice((0x0110, 0x0111, 0xA700, 0xB000, -1, "x", None, 2**40))]}
    body = rogue.rng.choice(
        (
            {"00081198": {"vr": "SQ", "Value": [item | {"00081197": code}]}},
            {"00081199": {"vr": "SQ", "Value": [item | {"00081196": code}]}},
            {"00081198": {"vr": "SQ", "Value": 5}},
            {"00081198": None},
            [],
            [[{}]],
        )
    )
    _send(connection, rogue.rng.choice((200, 202, 409)), _JSON, json.dumps(body).encode())


ANSWERS: dict[str, Answer] = {
    function.__name__.replace("_", "-"): function
    for function in (
        hang,
        reset,
        html,
        half_body,
        gzip_bomb,
        no_content,
        any_status,
        endless_list,
        endless_body,
        slow,
        hostile_json,
        hostile_multipart,
        wrong_kind,
        other_object,
        lying_metadata,
        other_frames,
        redirect,
        no_http,
        store_answers,
    )
}


def _request(connection: socket.socket) -> Request | None:
    data = b""
    while b"\r\n\r\n" not in data and len(data) < 1 << 16:
        piece = connection.recv(1 << 16)
        if not piece:
            return None
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    method, target, *_ = head.split(b"\r\n")[0].decode("latin-1").split(" ")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    missing = int(length[1]) - len(body) if length else 0
    while missing > 0 and (piece := connection.recv(min(missing, 1 << 16))):
        missing -= len(piece)
    parts = urlsplit(target)
    offset = int(parse_qs(parts.query).get("offset", ["0"])[0])
    path = parts.path
    if method == "POST":
        kind = "store"
    elif "/metadata" in path:
        kind = "metadata"
    elif "/frames/" in path:
        kind = "frames"
    elif re.search(r"/instances/[^/]+$", path):
        kind = "instance"
    else:
        kind = "find"
    return Request(kind, path, offset)


@contextmanager
def running(rogue: Rogue) -> Iterator[Rogue]:
    """The server on a free loopback port. Its threads end with the process of the case."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        rogue.address = f"dicomweb://127.0.0.1:{server.getsockname()[1]}/dicom-web"

        def serve(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                request = _request(connection)
                if request is None:
                    return
                rogue.seen(request)
                if request.kind == rogue.victim:
                    rogue.misbehave(rogue, request, connection)
                else:
                    _send(connection, *_right(rogue, request))

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield rogue
