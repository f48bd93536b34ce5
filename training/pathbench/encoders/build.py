"""An id to a ready encoder: card, network, weights, self-test."""

from pathlib import Path
from typing import Any

from torch import nn

from training.graphs import Graph
from training.pathbench.encoders import networks, selftest, weights
from training.pathbench.encoders.cards import FIXED_FIELD_UM, Card, Profile, Toolkit, licences_of, read_card, registered
from training.pathbench.encoders.encoder import Encoder, EncoderMeta
from training.pathbench.encoders.errors import EncoderInvalid
from training.pathbench.encoders.transforms import Transform
from training.runs import Run


def build(
    encoder_id: str,
    *,
    profile: Profile = "fixed-fov",
    toolkit: Toolkit = "pb",
    random_init: bool = False,
    seed: int = 0,
    accept_licence: bool = False,
) -> Encoder:
    """A registered encoder in eval mode on the CPU.

    `profile` is the field that tiles show: PathBench's 128 µm for all, or the encoder's native one; `toolkit` whose
    transform. `random_init` draws the weights by `seed` instead, and says so in `meta.random`.
    Raises EncoderMissing (weights or run absent), LicenceNotAccepted, EncoderInvalid (self-test, unverified card),
    WeightsInvalid (another architecture).
    """
    card = read_card(encoder_id)
    about = _of_card(card) | {"id": encoder_id, "profile": profile, "toolkit": toolkit}
    if card.weights.source == "run":
        if random_init:
            raise EncoderInvalid(f"{encoder_id} is a run of ours and has no random twin. Use random-vit.")
        run, graph = weights.load_run(encoder_id, card)
        return _of_run(card, run, graph, about)
    drawn, path = random_init or card.weights.source == "fresh", None
    if card.weights.source == "hub" and not drawn and not card.unverified:
        path = weights.weights_file(encoder_id, card)
        weights.demand_licence(encoder_id, card, accepted=accept_licence)
    network = networks.network_of(encoder_id, card)
    if drawn:
        networks.initialise(network, seed)
        checksum = weights.state_digest(network)
    else:
        checksum = _loaded(encoder_id, card, network, toolkit, path)
    about |= {
        "dim": card.dim,
        "checksum": checksum,
        "licences": licences_of(card),
        "pretraining": card.pretraining,
        "random": drawn,
        "run": None,
    }
    encoder = _encoder(network, card.transform(toolkit), card.field_um, about)
    if not random_init:
        selftest.verify(encoder, selftest.record_path(encoder_id, path))
    return encoder


def _loaded(encoder_id: str, card: Card, network: nn.Module, toolkit: Toolkit, path: Path | None) -> str:
    """Load the weights of the package, or of the file that a person fetched; their digest. The first time they are
    shown not to be those of a fresh network."""
    if card.weights.source == "none":
        return weights.functions_digest(encoder_id)
    digest = None if path is None else weights.verified_digest(encoder_id, card, path)
    known = digest and selftest.recorded(selftest.record_path(encoder_id, path), digest, toolkit)
    if not known:
        networks.initialise(network, seed=0)
        before = selftest.prints(network.network)
    if path is not None:
        weights.load_fetched(encoder_id, card, network.network, path)
    else:
        digest = weights.load_package(network.network).sha256
    if not known:
        selftest.demand_learned(encoder_id, network.network, before)
    assert digest is not None
    return digest


def _of_run(card: Card, run: Run, graph: Graph, about: dict[str, Any]) -> Encoder:
    """An encoder of ours: the graph that is served, which scales pixels itself. Its licences are those of its card, and
    of all data and weights that the graph's card names: it may be used only as all of them allow."""
    side_px, origins = int(graph.card["tile_px"]), graph.card["pretraining"]
    transform = Transform(side_px=side_px, fit="squash", interpolation="bicubic", resize_px=side_px)
    sets = {entry["trained_on"] for entry in origins} | {entry["dataset"] for entry in graph.card["data"]}
    experts = {entry["package"] for entry in origins} & set(registered())
    parents = {parent: read_card(parent) for parent in sorted({*card.inherits_from, *experts})}
    licences = {card.licence, *(entry["licence"] for entry in (*origins, *graph.card["data"]))}
    about |= {
        "inherits_from": tuple(parents),
        "gated": card.gated or any(parent.gated for parent in parents.values()),
        "commercial_ok": card.commercial_ok and all(parent.commercial_ok for parent in parents.values()),
        "derivatives_ok": card.derivatives_ok and all(parent.derivatives_ok for parent in parents.values()),
        "dim": int(graph.outputs[0].shape[0]),
        "checksum": run.weights_sha256,
        "licences": tuple(sorted(licences)),
        "pretraining": tuple(sorted(sets)),
        "random": False,
        "run": run.name,
    }
    encoder = _encoder(graph.network, transform, side_px * float(graph.card["mpp"]), about)
    selftest.verify(encoder, selftest.record_path(encoder.meta.id, None))
    return encoder


def _encoder(network: nn.Module, transform: Transform, native_um: float | None, about: dict[str, Any]) -> Encoder:
    """`about` is what the network and its transform do not say of themselves; `native_um` its publisher's field."""
    meta = EncoderMeta(
        **about,
        transform=str(transform),
        dtype="float32",
        tile_px=transform.side_px,
        field_um=FIXED_FIELD_UM if about["profile"] == "fixed-fov" else native_um,
        dense=hasattr(network, "dense"),
    )
    return Encoder(meta, transform, network.eval())


def _of_card(card: Card) -> dict[str, Any]:
    return {
        "title": card.title,
        "licence": card.licence,
        "gated": card.gated,
        "commercial_ok": card.commercial_ok,
        "derivatives_ok": card.derivatives_ok,
        "inherits_from": card.inherits_from,
        "embedding": card.embedding,
    }
