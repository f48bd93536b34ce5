"""Train one stage of the tissue system: `python -m training.tissue.train RECIPE.toml [--resume] [--out DIR]`.

Stages: `encoder` (from published weights, or from random ones with training), `head` (a linear layer on its features).
On a CPU with one thread the same recipe and seed give the same bits.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from training import command
from training.data import crc9
from training.data.dataset import Dataset
from training.data.seen import Seen
from training.data.views import VIEWS, colour_statistics, view
from training.embedding import cached, embed, on_tiles, random_encoder, settle_batch_norms
from training.errors import RecipeInvalid
from training.files import sha256_bytes
from training.graphs import declare
from training.head_card import demand_same_tile, encoder_has_seen
from training.nn.checkpoints import load_state, read_weights, round_to_fp16, save_weights
from training.nn.efficientnet_lite import WIDTH, initialise
from training.nn.pretrained import load_lite0
from training.nn.tile_encoder import EMBEDDING, TileEncoder
from training.repeatable import repeatable
from training.runs import Run, RunWriter, find_run, parse_recipe, read_toml, runs_folder
from training.tissue import evaluate
from training.tissue.model import TissueHead
from training.tissue.probe import Protocol, choose, cross_validate, fit
from training.tissue.recipe import EncoderRecipe, HeadRecipe, Training


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.tissue.train", description=__doc__)
    command.add_arguments(parser)
    chosen = parser.parse_args(arguments)
    return command.report(lambda: train(chosen.recipe, chosen.out, resume=chosen.resume))


def train(recipe_path: Path, out: Path | None = None, *, resume: bool = False) -> Run:
    """Run a recipe to a finished run folder. Raises TrainingError."""
    repeatable()
    values = read_toml(recipe_path)
    stage = values.get("stage")
    if stage == "encoder":
        return train_encoder(parse_recipe(EncoderRecipe, values), recipe_path, out, resume)
    if stage == "head":
        return train_head(parse_recipe(HeadRecipe, values), recipe_path, out, resume)
    raise RecipeInvalid(f"The recipe names the stage {stage!r}; the tissue system has the stages encoder and head.")


def train_encoder(recipe: EncoderRecipe, recipe_path: Path, out: Path | None, resume: bool) -> Run:
    """The encoder's weights, and what a linear probe on them tells, by cross-validation."""
    tiles = crc9.load()
    run = RunWriter(out or runs_folder() / recipe.name, recipe_path.read_bytes(), resume=resume)
    encoder = TileEncoder()
    if recipe.start == "random":
        training = recipe.training
        everything = np.arange(len(tiles.labels_N))
        load_state(encoder, train_network(run, "all", tiles, everything, training, recipe.seed), "this run")
        pretraining, data, seen = (), tiles.sources, Seen.of(tiles, everything)

        def features(train_N: np.ndarray) -> np.ndarray:
            fold = TileEncoder()
            key = f"fold-{sha256_bytes(train_N.tobytes())[:12]}"
            load_state(fold, train_network(run, key, tiles, train_N, training, recipe.seed), "this run")
            round_to_fp16(fold)
            return cached(run, f"{key}-embeddings", lambda: embed(fold, tiles, recipe.seed, recipe.probe.views))
    else:
        pretraining, data, seen = (load_lite0(encoder.network),), (), None
        round_to_fp16(encoder)
        frozen = cached(run, "embeddings", lambda: embed(encoder, tiles, recipe.seed, recipe.probe.views))

        def features(train_N: np.ndarray) -> np.ndarray:
            return frozen

    round_to_fp16(encoder)
    save_weights(run.weights_path, encoder)
    run.log("saved", start=recipe.start)
    runs_RNC, _ = cross_validate(features, tiles.labels_N, tiles.groups_N, recipe.probe, recipe.seed)
    rows = {"probe": runs_RNC, "colour statistics": _colour_baseline(tiles, recipe.probe, recipe.seed)}
    metrics = evaluate.summary(tiles, rows, recipe.probe, recipe.seed)
    # An encoder that was only converted has seen none of the tiles: they are its evaluation, not its training data.
    return run.finish(metrics=metrics, seed=recipe.seed, data=data, pretraining=pretraining, seen=seen)


def train_network(
    run: RunWriter,
    key: str,
    tiles: Dataset,
    train_N: np.ndarray,
    training: Training,
    seed: int,
    after_epoch: Callable[[str, int], None] = lambda key, epoch: None,
) -> dict[str, torch.Tensor]:
    """Train an encoder with a throw-away classifier on some tiles; the encoder's state. Resumes after each epoch."""
    finished, checkpoint = run.work / f"{key}.safetensors", run.work / f"{key}.pt"
    if finished.is_file():
        return read_weights(finished)
    generator = torch.Generator().manual_seed(seed)
    encoder, classifier = TileEncoder(), torch.nn.Linear(EMBEDDING, len(tiles.classes))
    initialise(encoder.network, generator)
    classifier.weight.data.normal_(0.0, 0.01, generator=generator)
    classifier.bias.data.zero_()
    parameters = [*encoder.parameters(), *classifier.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=training.rate, weight_decay=training.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, training.epochs)
    parts = {"encoder": encoder, "classifier": classifier, "optimiser": optimiser, "schedule": schedule}
    done = 0
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        done = saved["epoch"]
    images_NHWC = tiles.images()
    for epoch in range(done, training.epochs):
        rng = np.random.default_rng((seed, epoch))
        encoder.train()
        losses = []
        for batch_B in np.array_split(rng.permutation(train_N), -(-len(train_N) // training.batch)):
            crops = np.stack([random_crop(images_NHWC[k], training.crop_px, rng) for k in batch_B])
            logits_BC = classifier(encoder(torch.from_numpy(crops)))
            loss = F.cross_entropy(logits_BC, torch.from_numpy(tiles.labels_N[batch_B]), label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        schedule.step()
        run.log("epoch", part=key, epoch=epoch, loss=round(float(np.mean(losses)), 4))
        state = {name: part.state_dict() for name, part in parts.items()} | {"epoch": epoch + 1}
        torch.save(state, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)
        after_epoch(key, epoch)
    settle_batch_norms(encoder, images_NHWC[train_N])
    save_file(encoder.state_dict(), finished)
    checkpoint.unlink(missing_ok=True)
    return read_weights(finished)


def random_crop(image_HWC: np.ndarray, side_px: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of the tile in a random one of its sixteen views."""
    top, left = rng.integers(0, image_HWC.shape[0] - side_px + 1, 2)
    crop = image_HWC[top : top + side_px, left : left + side_px]
    return view(crop, int(rng.integers(16)), rng)


def train_head(recipe: HeadRecipe, recipe_path: Path, out: Path | None, resume: bool) -> Run:
    """The head on its frozen encoder, its figures, its baseline and its controls."""
    tiles = crc9.load()
    base = find_run(recipe.encoder)
    graph = declare(base)
    demand_same_tile(recipe.publish, graph)
    encoder = on_tiles(graph, tiles)
    run = RunWriter(out or runs_folder() / recipe.name, recipe_path.read_bytes(), resume=resume)
    features_NVD = cached(run, "embeddings", lambda: embed(encoder, tiles, recipe.seed, recipe.probe.views))

    choice = choose(features_NVD, tiles.labels_N, tiles.groups_N, recipe.probe, recipe.seed)
    (linear,) = fit(features_NVD[:, : VIEWS[choice.augmentation]], tiles.labels_N, (choice.penalty,))
    head = TissueHead(len(tiles.classes), features_NVD.shape[-1])
    load_state(
        head,
        {
            "linear.weight": torch.from_numpy(linear.weight_DC.T / choice.temperature).float(),
            "linear.bias": torch.from_numpy(linear.bias_C / choice.temperature).float(),
        },
        "this run",
    )
    save_weights(run.weights_path, head)
    run.log("fitted", augmentation=choice.augmentation, penalty=choice.penalty, temperature=choice.temperature)

    runs = {"head": _validate(features_NVD, tiles, recipe.probe, recipe.seed)}
    run.log("validated", part="head")
    runs["colour statistics"] = _colour_baseline(tiles, recipe.probe, recipe.seed)
    # The controls do without jittered views, which doubles their speed.
    control = recipe.probe.model_copy(update={"augmentations": ("none", "orientations")})
    random_NVD = cached(
        run, "random", lambda: embed(random_encoder(tiles, recipe.seed), tiles, recipe.seed, control.views)
    )
    runs["control: random encoder"] = _validate(random_NVD, tiles, control, recipe.seed)
    if isinstance(encoder, TileEncoder):
        runs["ablation: last feature map only"] = _validate(features_NVD[..., :WIDTH], tiles, recipe.probe, recipe.seed)
        runs["ablation: middle maps only"] = _validate(features_NVD[..., WIDTH:], tiles, recipe.probe, recipe.seed)
    run.log("validated", part="baseline, random encoder, ablations")
    shuffled = np.random.default_rng(recipe.seed).permutation(tiles.labels_N)
    shuffled_RNC, _ = cross_validate(lambda train_N: features_NVD, shuffled, tiles.groups_N, control, recipe.seed)
    metrics = evaluate.summary(tiles, runs, recipe.probe, recipe.seed)
    metrics["rows"]["control: shuffled labels"] = evaluate.figures(
        shuffled_RNC, shuffled, tiles.groups_N, recipe.probe, recipe.seed
    )
    metrics["choice"] = {
        "augmentation": choice.augmentation,
        "penalty": choice.penalty,
        "temperature": round(choice.temperature, 4),
    }
    metrics["operating_point"] = evaluate.answering(runs["head"], tiles.labels_N, recipe.accuracy_when_answered)
    metrics |= encoder_has_seen(base, tiles)
    return run.finish(
        metrics=metrics,
        seed=recipe.seed,
        data=tiles.sources,
        starts_from={"encoder": base},
        seen=Seen.of(tiles, np.arange(len(tiles))),
    )


def _validate(features_NVD: np.ndarray, tiles: Dataset, protocol: Protocol, seed: int) -> np.ndarray:
    return cross_validate(lambda train_N: features_NVD, tiles.labels_N, tiles.groups_N, protocol, seed)[0]


def _colour_baseline(tiles: Dataset, protocol: Protocol, seed: int) -> np.ndarray:
    colour_NVD = np.stack([colour_statistics(image) for image in tiles.images()])[:, None]
    return _validate(colour_NVD, tiles, protocol, seed)


if __name__ == "__main__":
    sys.exit(main())
