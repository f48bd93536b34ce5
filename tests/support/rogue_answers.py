"""Answers of a misbehaving PACS that several tests use."""

import io
import json
import socket
import struct

import pydicom

from tests.support.rogue_pacs import Answer, Request


def retrieving(status: int, content_type: str, body: bytes, **headers: str) -> Answer:
    return lambda request: request.answer(status, content_type, body, **headers)


def hang(request: Request) -> None:
    request.connection.settimeout(20)
    request.connection.recv(1)  # until the client gives up


def reset(request: Request) -> None:
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()


def by_path(*, metadata: Answer | None = None, frames: Answer | None = None, instance: Answer | None = None) -> Answer:
    """What is retrieved, each by an answer of its own; 404 where there is none."""

    def dispatch(request: Request) -> None:
        path = request.path.partition("?")[0]
        answer = metadata if path.endswith("/metadata") else frames if "/frames/" in path else instance
        if answer is None:
            request.answer(404, "", b"")
        else:
            answer(request)

    return dispatch


def describing(*files: bytes, **said: object) -> Answer:
    """Metadata of these instances; `said` replaces attributes by keyword, in all of them."""
    found = []
    for file in files:
        dataset = pydicom.dcmread(io.BytesIO(file), stop_before_pixels=True)
        for keyword, value in said.items():
            setattr(dataset, keyword, value)
        found.append(dataset.to_json_dict())
    body = json.dumps(found).encode()
    return lambda request: request.answer(200, "application/dicom+json", body)
