"""Weights that are not what they are taken for are caught, each by its own sentence."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.pathbench.encoders.conftest import TINY, fetch, learned
from training.errors import WeightsInvalid
from training.files import sha256_file
from training.nn.vit import ViT, ViTConfig, initialise
from training.pathbench.encoders import EncoderInvalid, EncoderMissing, LicenceNotAccepted, build, selftest
from training.pathbench.encoders.weights import _md5

pytestmark = pytest.mark.training


def test_the_first_load_records_and_the_second_verifies(tiny: Path) -> None:
    first = build("tiny", accept_licence=True)
    path = tiny.parent / "self-test.json"
    written = path.read_bytes()
    (record,) = json.loads(written)["records"].values()
    assert len(record["first"]) == 8
    assert record["transform"] == first.meta.transform
    assert record["normalisation"] > selftest.TOLERANCE
    assert build("tiny", accept_licence=True).meta == first.meta
    assert path.read_bytes() == written
    build("tiny", accept_licence=True, toolkit="native")
    assert len(json.loads(path.read_bytes())["records"]) == 2
    assert first.meta.checksum == sha256_file(tiny)
    assert (first.meta.random, first.meta.licences, first.meta.mpp) == (False, ("Tiny-1.0",), 128 / 56)


@pytest.mark.parametrize("text", ["[]", "{}", '{"records": 3}', '{"records":'])
def test_a_record_of_another_form_is_none_and_is_written_anew(tiny: Path, text: str) -> None:
    path = tiny.parent / "self-test.json"
    path.write_text(text)
    build("tiny", accept_licence=True)
    assert len(json.loads(path.read_bytes())["records"]) == 1


def test_the_reference_image_is_the_published_formula_s() -> None:
    image = selftest.reference_image()
    assert (image.shape, image.dtype) == ((512, 512, 3), np.uint8)
    y, x, c = 100, 37, 2
    wave = np.sin(0.05 * x * (c + 1) + 0.03 * y) * np.cos(0.02 * y * (c + 1))
    assert image[y, x, c] == min(255, int(127.5 * (1 + wave)))
    assert image[0, 0].tolist() == [127, 127, 127]


def test_a_licence_is_accepted_in_so_many_words(tiny: Path) -> None:
    with pytest.raises(LicenceNotAccepted, match=r"tiny is licensed under Tiny-1\.0: read it, and say accept_licence"):
        build("tiny")


def test_an_unknown_digest_is_shown_and_must_be_pinned(tiny: Path) -> None:
    (tiny.parent / "sha256.txt").unlink()
    with pytest.raises(EncoderInvalid, match=f"has the sha256 {sha256_file(tiny)}, which its card does not name"):
        build("tiny", accept_licence=True)


def test_a_published_digest_needs_no_pin(tiny: Path, register) -> None:
    (tiny.parent / "sha256.txt").unlink()
    register(TINY.replace('hub = "somebody/tiny"', f'hub = "somebody/tiny", md5 = "{_md5(tiny)}"'))
    build("tiny", accept_licence=True)


def test_one_changed_weight_is_caught_by_the_pin(tiny: Path) -> None:
    tensors = learned()
    tensors["blocks.1.mlp.fc2.weight"][0, 0] += 1e-3
    fetch(tiny.parents[1], tensors, pinned=False)
    with pytest.raises(EncoderInvalid, match=r"differs from the digest that is pinned in sha256\.txt"):
        build("tiny", accept_licence=True)


def test_one_changed_weight_is_caught_by_the_reference_embedding(tiny: Path) -> None:
    encoder = build("tiny", accept_licence=True)
    with torch.no_grad():
        encoder.network.network.blocks[0].attn.proj.weight[3, 3] += 1.0
    with pytest.raises(EncoderInvalid, match="another embedding of the reference image than at first"):
        selftest.verify(encoder, tiny.parent / "self-test.json")


def test_a_wrong_normalisation_is_caught(tiny: Path, register) -> None:
    encoder = build("tiny", accept_licence=True)
    wrong = replace(encoder, transform=replace(encoder.transform, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    with pytest.raises(EncoderInvalid, match="another embedding"):
        selftest.verify(wrong, tiny.parent / "self-test.json")
    register(TINY.replace("0.485, 0.456, 0.406", "0.5, 0.5, 0.5"))
    with pytest.raises(EncoderInvalid, match=r"the transform was “.*mean 0\.485.*”, now it is “.*mean 0\.5 "):
        build("tiny", accept_licence=True)


def test_another_filter_is_caught(tiny: Path, register) -> None:
    build("tiny", accept_licence=True)
    register(
        TINY.replace(
            'pb = { fit = "squash", interpolation = "bicubic" }', 'pb = { fit = "squash", interpolation = "bilinear" }'
        )
    )
    with pytest.raises(EncoderInvalid, match=r"bicubic.*bilinear"):
        build("tiny", accept_licence=True)


@pytest.mark.parametrize(
    ("layerscale", "seed", "sentence"),
    [
        (1e-5, 0, "is as a fresh network has it"),
        (1e-5, 5, "LayerScale of tiny is one constant"),
        (None, 5, "norms and biases of tiny are constants"),
    ],
)
def test_a_silently_random_encoder_is_caught(
    register, tmp_path: Path, layerscale: float | None, seed: int, sentence: str
) -> None:
    register(TINY if layerscale else TINY.replace("layerscale = 1e-5\n", ""))
    shape = {"image_px": 56, "patch_px": 14, "width": 32, "depth": 2, "heads": 2, "mlp": 64, "registers": 4}
    network = ViT(ViTConfig(**shape, positions="all", layerscale=layerscale))
    initialise(network, torch.Generator().manual_seed(seed))
    fetch(tmp_path / "weights", dict(network.state_dict()))
    with pytest.raises(EncoderInvalid, match=sentence):
        build("tiny", accept_licence=True)


def test_a_constant_encoder_is_caught(register, tmp_path: Path) -> None:
    register(TINY)
    tensors = learned()
    tensors["norm.weight"] = torch.zeros(32)
    fetch(tmp_path / "weights", tensors)
    with pytest.raises(EncoderInvalid, match="the same embedding for different images"):
        build("tiny", accept_licence=True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 64, "mlp": 128}, r"cls_token: shape \(1, 1, 64\) in place of \(1, 1, 32\)"),
        ({"registers": 0}, "lack reg_token"),
        ({"depth": 3}, r"hold blocks\.2\."),
        ({"positions": "patches"}, r"pos_embed: shape \(1, 16, 32\) in place of \(1, 21, 32\)"),
    ],
)
def test_another_architecture_is_refused_with_its_first_difference(
    register, tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    register(TINY)
    fetch(tmp_path / "weights", learned(**changes))
    with pytest.raises(WeightsInvalid, match=sentence):
        build("tiny", accept_licence=True)


def test_a_file_that_is_no_weights_is_refused(tiny: Path) -> None:
    tiny.write_bytes(tiny.read_bytes()[:-100])
    (tiny.parent / "sha256.txt").write_text(sha256_file(tiny))
    with pytest.raises(EncoderInvalid, match="cannot be read as weights"):
        build("tiny", accept_licence=True)
    tiny.with_suffix(".pth").write_bytes(b"no pickle")
    with pytest.raises(EncoderInvalid, match="2 weights files"):
        build("tiny", accept_licence=True)
    tiny.unlink()
    (tiny.parent / "sha256.txt").write_text(sha256_file(tiny.with_suffix(".pth")))
    with pytest.raises(EncoderInvalid, match="cannot be read as weights"):
        build("tiny", accept_licence=True)


class Runs:
    """A pickle that runs code where it is trusted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def _code(path: Path) -> None:
    torch.save({"cls_token": Runs(path.parent / "ran")}, path)


def _claim(path: Path) -> None:
    """Ten billion values in four bytes: float() would make 40 GB of them."""
    torch.save({"cls_token": torch.zeros(1, dtype=torch.float16).expand(10_000_000_000)}, path)


def _bomb(path: Path) -> None:
    torch.save({"cls_token": torch.zeros(1_000_000)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)


@pytest.mark.parametrize(
    "write",
    [
        _code,
        _claim,
        _bomb,
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"cls_token": 3}, path),
        lambda path: torch.save({7: torch.zeros(1)}, path),
        lambda path: path.write_bytes((10 * 2**30).to_bytes(8, "little") + b"{}"),
    ],
)
@pytest.mark.parametrize("layout", ["plain", "dinov2-teacher"])
def test_a_hostile_file_is_refused(register, tiny: Path, write: Callable[[Path], None], layout: str) -> None:
    register(TINY.replace('hub = "somebody/tiny"', f'layout = "{layout}", hub = "somebody/tiny"'))
    tiny.unlink()
    path = tiny.with_suffix(".bin")
    write(path)
    (path.parent / "sha256.txt").write_text(sha256_file(path))
    with pytest.raises((EncoderInvalid, WeightsInvalid), match=r"cannot be read as weights|lack|hold"):
        build("tiny", accept_licence=True)
    assert not (path.parent / "ran").exists()


@pytest.mark.parametrize("put", [Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_file_is_no_weights(tiny: Path, put: Callable[[Path], None]) -> None:
    tiny.unlink()
    put(tiny.with_suffix(".pt"))
    with pytest.raises(EncoderMissing):
        build("tiny", accept_licence=True)


def test_an_empty_folder_is_no_weights(tiny: Path) -> None:
    tiny.unlink()
    with pytest.raises(EncoderMissing, match=r"Fetch tiny\.safetensors of somebody/tiny"):
        build("tiny", accept_licence=True)


def test_a_batch_of_another_transform_is_refused(tiny: Path) -> None:
    encoder = build("tiny", accept_licence=True)
    native = build("tiny", accept_licence=True, toolkit="native")
    images = [selftest.reference_image()]
    assert encoder.module(encoder.batch(images)).shape == (1, 64)
    with pytest.raises(EncoderInvalid, match="was prepared as “shorter side to 56, centre 56"):
        encoder.module(native.batch(images))
