"""Answers of a misbehaving PACS that several tests use."""

import socket
import struct

from tests.support.rogue_pacs import Answer, Request


def retrieving(status: int, content_type: str, body: bytes, **headers: str) -> Answer:
    return lambda request: request.answer(status, content_type, body, **headers)


def hang(request: Request) -> None:
    request.connection.settimeout(20)
    request.connection.recv(1)  # until the client gives up


def reset(request: Request) -> None:
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()
