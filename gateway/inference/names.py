"""A model's versions as folders of the repository: `tile_encoder` is version 1, `tile_encoder-v2` is version 2.

Each version is a Triton model of its own: two versions may need two backends, and one must be unloaded alone, while
Triton's own version folders share one config.pbtxt and are loaded and unloaded together.
"""

import re

_MODEL = re.compile(r"[A-Za-z0-9_]+\Z")
# Triton's stubs are started through a shell: any other character in a folder's name could run as a command.
_FOLDER = re.compile(r"(?P<model>[A-Za-z0-9_]+)(-v(?P<version>[1-9][0-9]{0,8}))?\Z")


def folder_of(model: str, version: str) -> str:
    """The folder, and so Triton's name, of one version of a model. Raises ValueError for no such name or number."""
    folder = model if version == "1" else f"{model}-v{version}"
    if not _MODEL.match(model) or split_folder(folder) != (model, version):
        raise ValueError(f"{model!r} version {version!r} names no model folder")
    return folder


def split_folder(folder: str) -> tuple[str, str] | None:
    """Model and version of a folder's name; None where it is not one that can be served."""
    match = _FOLDER.match(folder)
    if match is None or match["version"] == "1":
        return None
    return match["model"], match["version"] or "1"
