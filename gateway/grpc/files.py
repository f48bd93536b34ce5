"""Files in parts: they are larger than a message."""

from typing import Any, BinaryIO

from gateway.analyses.reads import ResultFile
from gateway.grpc import views
from gateway.grpc.proto.pathserve.v1.results_pb2 import FilePart
from gateway.grpc.threads import in_thread
from gateway.operations.errors import NotFound

_PART_BYTES = 256 * 1024


async def send_file(file: ResultFile, context: Any) -> None:
    """What the file is, then its bytes. Raises NotFound where it is no longer kept."""
    content = await in_thread(_open, file)
    with content:
        await context.write(FilePart(info=views.file_info(file)))
        while part := await in_thread(content.read, _PART_BYTES):
            await context.write(FilePart(data=part))


def _open(file: ResultFile) -> BinaryIO:
    try:
        return file.path.open("rb")
    except OSError:
        raise NotFound("This file of the analysis is no longer kept.") from None
