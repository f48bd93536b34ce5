"""docs/encoders.md: the registry as a page, made of the cards."""

from training.pathbench.encoders.cards import Card, Vit, read_card, registered

_HEAD = """\
# Encoders

An encoder turns a tile into a vector. The registry (`training/pathbench/encoders/registry.toml`, one line and one card
an encoder) holds ours, the bench's floor, PathBench's nineteen and their neighbours. This page is made of it:

    python -m training.pathbench.encoders page --out docs/encoders.md

## Use

    from training.pathbench.encoders import build
    encoder = build("lite0", profile="fixed-fov", toolkit="pb")
    vectors = encoder.embed(tiles)          # (N, D) float32 of (H, W, 3) uint8 tiles
    maps = encoder.dense(tiles)             # (N, h, w, C): patch tokens or the last map, where `meta.dense`

`profile` is the field that a tile shows: PathBench's 128 µm for all (`fixed-fov`), or the one that the encoder's
publisher shows it (`native`). `toolkit` is whose transform: PathBench's extractor (`pb`), TRIDENT (`tr`) or the
publisher's (`native`); where a card has none for a toolkit, the publisher's stands for it. Figures of different
toolkits are not interchangeable, so `encoder.meta` holds all of it (id, checksum of the weights, profile, toolkit,
transform as a string, embedding rule, dtype, tile side in pixels and µm), feature files and cells store it, and a batch
that another transform has prepared is refused. Transforms are Pillow's filters; here everything runs in float32.

## Weights

Nothing is downloaded. Weights that a publisher holds are fetched by a person, who accepts their licence, into
`PATHSERVE_WEIGHTS/<id>/` (default: `weights` beside `PATHSERVE_RUNS`), one file an encoder, as `.safetensors`, `.bin`,
`.pth` or `.pt` (read without running code from it). Where the card names no digest, or another one, the first `build`
shows the file's: compare it with the publisher's, and pin it in `sha256.txt` beside the file. `accept_licence` has to
be said each time; a cell “to be checked” in the table was inferred, not read.

At the first load the encoder must pass a self-test, whose record lies beside the file (of packages and runs: in
`PATHSERVE_RUNS/encoders/<id>/`): every tensor there and nothing else, of the right shapes; no matrix as a fresh network
has it, no LayerScale at one constant, not most norms and biases at 0 or 1; unlike images apart; the order of a batch
without influence, the normalisation with some. Ever after, the embedding of a reference image (sines, the same on every
machine) must be the recorded one to 1e-3 of its size. That catches one changed weight, swapped means, another filter,
and a library that resamples otherwise.

A file's own tensor names (DINOv2's teacher in chunks, transformers' ViT and Dinov2, CTransPath's and torchvision's) are
turned into ours; a checkpoint of another architecture is refused with the first tensor that differs. Position tables
are never resized without a word: a table of another size is another architecture.

## Serve

    python -m exporters build encoder:ID [--accept-licence] [--field-um UM] --target onnx --out REPOSITORY

makes a run folder `encoder-<id>-<digest>` in `PATHSERVE_RUNS` and builds it through the gates of every run
([engines.md](engines.md)) as a version of `tile_encoder`. The served tile is the network's own input side, at the scale
that makes it show the publisher's field (column `µm/px`): the gateway's one resampling takes the place of the
publisher's, and nothing is resized in the graph. `--field-um` serves it on tiles of another field, because the tiles
that there are labels for show it (ours: 112 µm); its card then says so. The licences of the weights and of all that
they inherit from stand in the model's card and are printed. Random weights and functions are built into no repository.
An encoder whose weights are more than 2 GiB as fp32 (ViT-H and larger: 631 M parameters and more) does not fit into one
ONNX file and is refused.
Heads are only right on the weights that they were fitted on, so they are fitted anew, each on its own encoder:

1. Write the run's name into `encoder` of a copy of `training/recipes/tissue-head-small.toml`, and the encoder's tile
   into its `[publish]`; `python -m training.tissue.train COPY`. Slide heads likewise
   ([slide-heads.md](slide-heads.md)).
2. `python -m exporters build RUN --target onnx --out REPOSITORY`: the encoder first, then the heads; or copy the runs
   to `training/released/` and call `make engines`.

The head's tiles are cross-validated. Where the encoder itself was trained on them, its figures are too high: the run
says so (`encoder_has_seen` in `metrics.json`), and so do the limits in the head's card.

## Ours, and the floor

"""
_PUBLISHED = """
An encoder of ours is under its own licence and those of all data and weights that it was made from, be it by training,
as a start or as an expert: its run's manifest lists them (`data`, `pretraining`, `inherited`), its card and
`encoder.meta` unite them, and it may be used only as all of them allow. ImageNet-1k, from which `lite0`, `lite1` and
what starts from them come, gives its pictures for research that earns nothing; the packages' authors put the weights
under Apache-2.0. Whoever does not want to rely on that begins from scratch (`tissue-encoder-scratch`, `gpfm-ssl-small`)
and distils from no expert that started there.

## Published

Parameters of networks that can be built are counted by test, and their shapes compared with the published ones.
“Known by size only”: no architecture is described, so `build` refuses. Input: the publisher's transform; those of other
toolkits where they differ.

"""


def page() -> str:
    """The whole page."""
    cards = {name: read_card(name) for name in registered()}
    ours = {name: card for name, card in cards.items() if card.weights.source != "hub"}
    published = {name: card for name, card in cards.items() if name not in ours}
    notes = "".join(f"- `{name}`: {card.note}\n" for name, card in cards.items() if card.note)
    return "".join(
        (
            _HEAD,
            _table(
                ("id", "what it is", "weights", "parameters", "dimension"),
                [
                    (f"`{name}`", card.title, _origin(card), card.parameters, str(card.dim or ""))
                    for name, card in ours.items()
                ],
            ),
            _PUBLISHED,
            _table(
                ("id", "weights", "network", "parameters", "input", "mean, deviation", "embedding", "field", "µm/px"),
                [_row(name, card) for name, card in published.items()],
            ),
            "\n",
            _table(
                ("id", "licence", "access", "commercial use", "derivatives", "inherits from", "trained on"),
                [_terms(name, card) for name, card in published.items()],
            ),
            "\n## Notes\n\n",
            notes,
        )
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _origin(card: Card) -> str:
    match card.weights.source:
        case "package":
            return f"package {card.weights.hub}"
        case "run":
            return f"run of `{card.weights.run}`"
        case "fresh":
            return "drawn by a seed"
    return "none"


def _row(name: str, card: Card) -> tuple[str, ...]:
    scale = "" if card.mean is None or card.std is None else f"{_numbers(card.mean)}; {_numbers(card.std)}"
    field_um, side_px = card.field_um or 0.0, card.side_px or 1
    return (
        f"`{name}`",
        card.weights.hub + (f", `{card.weights.file}`" if card.weights.file else ""),
        _network(card),
        card.parameters,
        _input(card),
        scale,
        f"{card.embedding} → {card.dim}",
        f"{field_um:g} µm{_doubt(card, 'field_um')}",
        f"{field_um / side_px:.3f}",
    )


def _terms(name: str, card: Card) -> tuple[str, ...]:
    return (
        f"`{name}`",
        card.licence + _doubt(card, "licence"),
        "gated" if card.gated else "public",
        _yes(card.commercial_ok) + _doubt(card, "commercial_ok"),
        _yes(card.derivatives_ok) + _doubt(card, "derivatives_ok"),
        ", ".join(card.inherits_from),
        ", ".join(card.pretraining) + _doubt(card, "pretraining"),
    )


def _network(card: Card) -> str:
    shape = card.architecture
    if card.unverified or shape is None:
        return "known by size only"
    if not isinstance(shape, Vit):
        return {"swin-convstem": "Swin-T with convolutional stem", "resnet50-stage3": "ResNet-50, stages 1–3"}[
            shape.kind
        ]
    registers = f", {shape.registers} registers" if shape.registers else ""
    feed = "SwiGLU" if shape.ffn == "swiglu" else "MLP"
    return f"ViT {shape.depth} × {shape.width}, patch {shape.patch_px}, {feed}{registers}"


def _input(card: Card) -> str:
    transforms = {toolkit: card.transform(toolkit) for toolkit in card.transforms}
    texts = {toolkit: f"{transform.size}, {transform.interpolation}" for toolkit, transform in transforms.items()}
    others = [f"{name}: {text}" for name, text in texts.items() if text != texts["native"]]
    return "; ".join([texts["native"], *others]) + _doubt(card, "transforms")


def _numbers(values: tuple[float, float, float]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else " ".join(f"{value:g}" for value in values)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _doubt(card: Card, field: str) -> str:
    return " (to be checked)" if field in card.inferred else ""
