"""A registered encoder as a run folder, so that it is exported, gated, served and released as any run is.

The served tile is the network's own input side, cut at the scale that makes it show the publisher's field: the
gateway's one resampling takes the place of the publisher's, and there is no resize in the graph.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from training.graphs import Graph, TensorSpec
from training.nn.checkpoints import load_state, read_weights, save_weights
from training.pathbench.encoders import networks, weights
from training.pathbench.encoders.build import build
from training.pathbench.encoders.cards import Card, read_card
from training.pathbench.encoders.encoder import Encoder
from training.pathbench.encoders.errors import EncoderInvalid
from training.pathbench.encoders.transforms import Transform
from training.publish import Published, card_texts, synthetic_tiles
from training.runs import Pretraining, Recipe, Run, RunWriter, open_run, parse_recipe, runs_folder

RANDOM = "random"
MODEL = "tile_encoder"
"""What an encoder is served as: the heads that were fitted on its weights find it by their digest."""


class ServedRecipe(Recipe):
    """The recipe of a run that only brings an encoder's weights into a run folder.

    `field_um`: the field that its tiles show where it is served, if that is not its publisher's.
    """

    stage: Literal["encoder"]
    encoder: str
    weights: Literal["published", "random"]
    checksum: str
    field_um: float | None = Field(default=None, gt=0)


class ServedEncoder(nn.Module):
    """image (B,side,side,3) uint8 RGB to embedding (B,D) fp32: the transform's scaling, then the network."""

    def __init__(self, network: nn.Module, transform: Transform) -> None:
        super().__init__()
        self.network = network
        self.scaled = transform.mean is not None
        if transform.mean is not None and transform.std is not None:
            self.register_buffer("mean_C", torch.tensor(transform.mean), persistent=False)
            self.register_buffer("std_C", torch.tensor(transform.std), persistent=False)

    def forward(self, image_BHWC: Tensor) -> Tensor:
        if not self.scaled:
            return self.network(image_BHWC)
        x_BHWC = (image_BHWC.to(torch.float32) / 255 - self.mean_C) / self.std_C
        return self.network(x_BHWC.permute(0, 3, 1, 2))


def as_run(
    encoder_id: str,
    *,
    field_um: float | None = None,
    random_init: bool = False,
    seed: int = 0,
    accept_licence: bool = False,
) -> Run:
    """The run of an encoder of ours; else a run folder in PATHSERVE_RUNS that holds the encoder's weights.

    The folder's name carries the weights' digest, so it is made once. `field_um` serves it on tiles of another field
    than its publisher's, so that it fits the tiles that there are labels for. `random_init` makes one of random
    weights, which says so and is built into no repository but a test's.
    Raises as `build` does, and EncoderInvalid for a function, which has no graph.
    """
    card = read_card(encoder_id)
    if card.weights.source == "run":
        if field_um is not None:
            raise EncoderInvalid(f"{encoder_id} is a run of ours: its recipe says what field its tiles show.")
        return weights.load_run(encoder_id, card)[0]
    if card.weights.source == "none":
        raise EncoderInvalid(f"{encoder_id} is a function without weights: it cannot be served.")
    encoder = build(
        encoder_id,
        profile="native",
        toolkit="native",
        random_init=random_init,
        seed=seed,
        accept_licence=accept_licence,
    )
    meta = encoder.meta
    name = f"encoder-{encoder_id}-{RANDOM if meta.random else meta.checksum[:12]}"
    name += f"-{field_um:g}um" if field_um is not None else ""
    recipe = (
        f'name = "{name}"\nsystem = "pathbench"\nstage = "encoder"\nseed = {seed}\nencoder = "{encoder_id}"\n'
        f'weights = "{RANDOM if meta.random else "published"}"\nchecksum = "{meta.checksum}"\n'
    ) + (f"field_um = {field_um:g}\n" if field_um is not None else "")
    folder = runs_folder() / name
    if (folder / "manifest.json").is_file():
        return open_run(folder)
    run = RunWriter(folder, recipe.encode(), resume=True)
    save_weights(run.weights_path, encoder.network.network)
    run.log("saved", encoder=encoder_id)
    return run.finish(metrics={}, seed=seed, pretraining=[] if meta.random else [_pretraining(card, encoder)])


def _pretraining(card: Card, encoder: Encoder) -> Pretraining:
    if card.weights.source == "package":
        return weights.load_package(encoder.network.network)
    meta = encoder.meta
    return Pretraining(
        package=card.weights.hub,
        version="as fetched and pinned",
        file=card.weights.file or "its weights file",
        sha256=meta.checksum,
        licence=", ".join(meta.licences),
        trained_on=", ".join(meta.pretraining),
    )


def declare(run: Run) -> Graph:
    """The graph of such a run. Raises RecipeInvalid, EncoderMissing, EncoderInvalid, WeightsInvalid."""
    recipe = parse_recipe(ServedRecipe, run.recipe)
    card = read_card(recipe.encoder)
    if recipe.weights != RANDOM and not run.manifest["pretraining"]:
        raise EncoderInvalid(f"The run {run.name} names no weights that it started from.")
    network = networks.network_of(recipe.encoder, card)
    load_state(network.network, read_weights(run.weights_path), run.name)
    transform = card.transform("native")
    side_px = transform.side_px
    assert card.dim is not None
    return Graph(
        model=MODEL,
        kind="encoder",
        network=ServedEncoder(network, transform).eval(),
        inputs=(TensorSpec("image", "UINT8", (side_px, side_px, 3)),),
        outputs=(TensorSpec("embedding", "FP32", (card.dim,)),),
        samples=lambda sizes: {"image": synthetic_tiles(sizes["batch"], side_px, recipe.seed)},
        card=_texts(card, run, side_px, recipe.field_um) | {"embedding_size": card.dim},
    )


def _texts(card: Card, run: Run, side_px: int, chosen_um: float | None) -> dict[str, Any]:
    """The texts of its card in the repository."""
    field_um = chosen_um or card.field_um
    assert field_um is not None
    drawn = run.recipe["weights"] == RANDOM
    licences = sorted({entry["licence"] for entry in run.manifest["pretraining"]})
    limits = [
        f"The served tile is {side_px} px wide and shows {field_um:g} µm; its publisher resizes tiles of that field by "
        "its own filter, which the gateway's resampling replaces.",
        "Nothing was measured with this server: see the bench for what its embedding tells.",
        *(f"Licence of the weights and of what they inherit from: {licence}." for licence in licences),
    ]
    if field_um != card.field_um:
        limits.insert(1, f"Its publisher shows it {card.field_um:g} µm a tile; it is served on another field here.")
    if drawn:
        limits.insert(0, "Its weights are random: it has learned nothing, and its embedding means nothing.")
    publish = Published(
        model=MODEL,
        title=f"{'Random weights: ' if drawn else ''}{card.title}",
        mpp=round(field_um / side_px, 6),
        tile_px=side_px,
        statement=f"Turns H&E tiles of {field_um:g} µm into vectors for the heads that were fitted on it. "
        "Research use, not a medical device.",
        organs=(),
        stains=("HE",),
        limits=tuple(limits),
    )
    return card_texts(publish, (), run.manifest["pretraining"]) | {"metrics": []}
