"""The registry says what each encoder is, and the network that comes of it is the published one's shape."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from training.pathbench.encoders import EncoderInvalid, EncoderMissing, build, networks, read_card, registered
from training.pathbench.encoders.cards import FOLDER, Vit, licences_of

pytestmark = pytest.mark.training

PATHBENCH = [
    *(
        "resnet50",
        "ctranspath",
        "chief",
        "phikon",
        "phikon-v2",
        "uni",
        "uni2-h",
        "gpfm",
        "mstar",
        "virchow",
        "virchow2",
    ),
    *("h-optimus-0", "h-optimus-1", "gigapath", "hibou-l", "plip", "conch", "conch-1.5", "musk"),
]
UNVERIFIED = {"hibou-l", "plip", "conch", "conch-1.5", "musk", "midnight-12k", "genbio-pathfm"}
PUBLISHED = [name for name in registered() if read_card(name).weights.source == "hub"]
KNOWN = [name for name in PUBLISHED if name not in UNVERIFIED]
SHAPES = {repr((read_card(name).architecture, read_card(name).embedding)): name for name in KNOWN}
"""One id of each network that several share."""
TILE = np.random.default_rng(3).integers(0, 256, (2, 250, 250, 3), dtype=np.uint8)


def test_pathbench_s_nineteen_are_registered_and_every_card_has_its_line() -> None:
    assert [name for name in registered() if name in PATHBENCH] == PATHBENCH
    lines = tomllib.loads((FOLDER / "registry.toml").read_text(encoding="utf-8"))
    assert sorted(lines.values()) == sorted(path.name for path in (FOLDER / "cards").iterdir())
    assert all(file == f"{name}.toml" for name, file in lines.items())
    assert {name for name in PUBLISHED if read_card(name).unverified} == UNVERIFIED


@pytest.mark.parametrize("name", KNOWN)
def test_the_architecture_comes_to_the_published_counts_and_shapes(name: str) -> None:
    card = read_card(name)
    with torch.device("meta"):
        network = networks.network_of(name, card).network
    state = network.state_dict()
    assert sum(parameter.numel() for parameter in network.parameters()) == card.checks.parameters
    assert card.checks.tensors in (None, len(state))
    assert {key: tuple(state[key].shape) for key in card.checks.shapes} == card.checks.shapes
    if isinstance(card.architecture, Vit):
        assert card.checks.shapes["pos_embed"]


@pytest.mark.parametrize("name", SHAPES.values())
def test_two_images_give_two_vectors_alone_and_together(name: str) -> None:
    """With one block, its feed-forward cut, of each published transformer, whole networks where they are small."""
    card = read_card(name)
    if isinstance(card.architecture, Vit):
        card = card.model_copy(update={"architecture": card.architecture.model_copy(update={"depth": 1, "mlp": 64})})
    network = networks.network_of(name, card).eval()
    networks.initialise(network, seed=0)
    pixels = torch.stack([card.transform("pb")(image) for image in TILE])
    with torch.inference_mode():
        together = network(pixels)
        alone = torch.cat([network(pixels[:1]), network(pixels[1:])])
    assert together.shape == (2, card.dim)
    assert torch.isfinite(together).all()
    assert float((together - alone).abs().max()) <= 1e-5 * max(1.0, float(together.abs().max()))
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("name", sorted(UNVERIFIED))
def test_what_is_not_known_is_not_built(name: str) -> None:
    with pytest.raises(EncoderInvalid, match=f"Of {name} only the dimension"):
        build(name, accept_licence=True, random_init=True)


def test_absent_weights_say_where_they_are_and_where_they_go() -> None:
    with pytest.raises(EncoderMissing) as caught:
        build("uni")
    assert caught.value.detail == (
        "The weights of uni are not here. Fetch the weights file of MahmoodLab/UNI (gated: ask for access there; "
        "licence CC-BY-NC-ND-4.0) and put it into uni/ in the folder PATHSERVE_WEIGHTS."
    )


def test_an_encoder_of_ours_that_is_not_trained_says_how_to_train_it() -> None:
    with pytest.raises(EncoderMissing, match=r"training\.gpfm\.train training/recipes/gpfm-ssl-small\.toml"):
        build("gpfm-ssl-small")


def test_an_unknown_id_is_answered_with_the_known_ones() -> None:
    with pytest.raises(EncoderMissing, match=r"no encoder nowhere in the registry; its ids are lite0, .*virchow2"):
        build("nowhere")


def test_licences_are_the_union_of_what_is_inherited() -> None:
    assert licences_of(read_card("h0-mini")) == ("Apache-2.0", "CC-BY-NC-ND-4.0")
    assert {"CC-BY-NC-ND-4.0", "Owkin non-commercial"} < set(licences_of(read_card("gpfm")))


@pytest.mark.parametrize(
    ("name", "dim", "map_shape"),
    [
        ("lite0", 1584, (7, 7, 1280)),
        ("lite1", 1584, (8, 8, 1280)),
        ("tile-encoder", 1584, (7, 7, 1280)),
        ("random-vit", 128, (8, 8, 128)),
        ("colour-histogram", 512, None),
        ("lbp", 54, None),
    ],
)
def test_what_needs_no_fetching_works_at_once(name: str, dim: int, map_shape: tuple[int, ...] | None) -> None:
    encoder = build(name)
    vectors = encoder.embed(iter([*TILE, TILE[0, :100]]), batch=2)
    assert (vectors.shape, vectors.dtype) == ((3, dim), np.float32)
    assert np.isfinite(vectors).all()
    assert np.array_equal(encoder.embed([]), np.zeros((0, dim), np.float32))
    assert (encoder.meta.dim, encoder.meta.field_um, encoder.meta.dense) == (dim, 128.0, map_shape is not None)
    if map_shape:
        assert encoder.dense(TILE).shape == (2, *map_shape)
    else:
        with pytest.raises(EncoderInvalid, match="no map"):
            encoder.dense(TILE)
    again = build(name, profile="native")
    assert again.meta.checksum == encoder.meta.checksum
    assert again.meta.mpp == pytest.approx(again.meta.field_um / again.meta.tile_px)


def test_the_first_lite_is_the_served_tile_encoder_but_for_rounding() -> None:
    """The served one keeps its matrices as fp16."""
    published, served = (build(name).embed(TILE) for name in ("lite0", "tile-encoder"))
    assert 0 < np.abs(published - served).max() < 0.02 * np.abs(published).max()


def test_random_weights_follow_the_seed() -> None:
    one, same, other = (build("random-vit", seed=seed).meta.checksum for seed in (1, 1, 2))
    assert one == same != other


def test_only_a_run_of_an_encoder_is_one(register, tmp_path: Path) -> None:
    text = (FOLDER / "cards" / "tile-encoder.toml").read_text(encoding="utf-8")
    register(text.replace("tissue-encoder-small", "tissue-head-small"))
    with pytest.raises(EncoderInvalid, match="tissue-head-small is a head, not an encoder"):
        build("tiny")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('title = "', 'titel = "', "titel|title"),
        ('run = "tissue-encoder-small"', 'run = "x", md5 = 3', "weights.md5"),
        ("gated = false", "gated = false\ndim = 3", "the run says the rest"),
    ],
)
def test_a_card_that_is_not_one_is_refused(register, old: str, new: str, sentence: str) -> None:
    register((FOLDER / "cards" / "tile-encoder.toml").read_text(encoding="utf-8").replace(old, new))
    with pytest.raises(EncoderInvalid, match=rf"tiny\.toml is not valid.*({sentence})"):
        read_card("tiny")
