"""Versions as folder names: one folder for each version, one name for each folder."""

import pytest

from gateway.inference.names import folder_of, split_folder


@pytest.mark.parametrize(
    ("model", "version", "folder"),
    [("tile_encoder", "1", "tile_encoder"), ("tile_encoder", "2", "tile_encoder-v2"), ("v2", "10", "v2-v10")],
)
def test_a_version_has_one_folder(model: str, version: str, folder: str) -> None:
    assert folder_of(model, version) == folder
    assert split_folder(folder) == (model, version)


@pytest.mark.parametrize(
    "folder",
    [
        "m-v1",
        "m-v0",
        "m-v02",
        "m-v-2",
        "m-v",
        "m-2",
        "m-v2-v3",
        "m-v2\n",
        "m\n",
        "",
        "-v2",
        "m-V2",
        "m-v٢",
        ".m",
        "m/v",
    ],
)
def test_no_other_folder_is_a_version(folder: str) -> None:
    assert split_folder(folder) is None


@pytest.mark.parametrize(
    ("model", "version"),
    [
        ("m", "0"),
        ("m", "01"),
        ("m", "-1"),
        ("m", ""),
        ("m", "two"),
        ("m-v2", "1"),
        ("m-v2", "2"),
        ("", "1"),
        ("a b", "1"),
    ],
)
def test_a_version_that_is_none_has_no_folder(model: str, version: str) -> None:
    with pytest.raises(ValueError, match="names no model folder"):
        folder_of(model, version)
