"""The experts that learn from labels: kinds of tissue (E1, supervised), and tiles against phrases (E3, contrastive).

Both are deliberately small and different from each other and from the student (GPFM distils experts of different
origin); their heads and the text side are thrown away.
"""

from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.errors import WeightsInvalid
from training.gpfm.data import Labelled, labelled, resized, validation
from training.gpfm.model import ImageEncoder
from training.gpfm.recipe import ContrastiveRecipe, SupervisedRecipe
from training.nn.checkpoints import round_to_fp16, save_weights
from training.runs import Run, RunWriter
from training.ssl.model import IMAGENET, begin, new_backbone, normalise
from training.ssl.schedules import Schedule
from training.ssl.views import augmented, random_crop
from training.statistics import balanced_accuracy

_TEMPLATES = ("{}", "a tile of {}", "{} under the microscope", "stained tissue showing {}")
_WORD_WIDTH = 64


class TissueLearner(nn.Module):
    """A backbone with one linear classifier over the kinds of all sets; a tile's loss is over its own set's kinds."""

    def __init__(self, encoder: ImageEncoder, tiles: Labelled, label_smoothing: float) -> None:
        super().__init__()
        self.encoder, self._smoothing, self._tiles = encoder, label_smoothing, tiles
        self.classifier = nn.Linear(encoder.dim, len(tiles.phrases))
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)

    def loss(self, x_BCHW: Tensor, labels_B: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Mean cross-entropy."""
        logits_BC, total = self.classifier(self.encoder(x_BCHW)[0]), x_BCHW.new_zeros(())
        own_B = self._tiles.sets_C[labels_B]
        for number in np.unique(own_B):
            columns, rows = np.flatnonzero(self._tiles.sets_C == number), np.flatnonzero(own_B == number)
            targets = torch.from_numpy(labels_B[rows] - columns[0])
            logits = logits_BC[rows][:, columns]
            total = total + F.cross_entropy(logits, targets, label_smoothing=self._smoothing, reduction="sum")
        return total / len(labels_B)

    @torch.no_grad()
    def scores(self, x_BCHW: Tensor) -> Tensor:
        """(B,C) logits."""
        return self.classifier(self.encoder(x_BCHW)[0])


class PhraseLearner(nn.Module):
    """An image side, and a text side that averages its words' vectors: what is told apart are a few dozen phrases.

    Rows that share a phrase are one another's positives (UniCL, arXiv 2204.03610); with distinct phrases it is CLIP's
    loss (arXiv 2103.00020).
    """

    def __init__(self, encoder: ImageEncoder, phrases: tuple[str, ...], temperature: float) -> None:
        super().__init__()
        self.encoder, self._phrases = encoder, phrases
        words = {word for text in (*phrases, *_TEMPLATES) for word in _words(text)}
        self._places = {word: place for place, word in enumerate(sorted(words))}
        self.words = nn.EmbeddingBag(len(words), _WORD_WIDTH, mode="mean")
        self.text = nn.Sequential(
            nn.Linear(_WORD_WIDTH, 2 * _WORD_WIDTH), nn.GELU(), nn.Linear(2 * _WORD_WIDTH, encoder.dim)
        )
        self.log_scale = nn.Parameter(torch.tensor(-np.log(temperature), dtype=torch.float32))

    def texts(self, texts: list[str]) -> Tensor:
        """(B,D) unit vectors of phrases."""
        words = [torch.tensor([self._places[word] for word in _words(text)]) for text in texts]
        starts = torch.tensor([0, *(len(row) for row in words[:-1])]).cumsum(0)
        return F.normalize(self.text(self.words(torch.cat(words), starts)), dim=-1)

    def loss(self, x_BCHW: Tensor, labels_B: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Mean of both directions' cross-entropies."""
        texts = [str(rng.choice(_TEMPLATES)).format(self._phrases[label]) for label in labels_B]
        logits_BB = self.encoder(x_BCHW)[0] @ self.texts(texts).T * self.log_scale.exp().clamp(max=100)
        same_BB = torch.from_numpy(labels_B[:, None] == labels_B).float()
        q_BB = same_BB / same_BB.sum(1, keepdim=True)
        return (F.cross_entropy(logits_BB, q_BB) + F.cross_entropy(logits_BB.T, q_BB)) / 2

    @torch.no_grad()
    def scores(self, x_BCHW: Tensor) -> Tensor:
        """(B,C) cosines with every phrase, in the first template."""
        return self.encoder(x_BCHW)[0] @ self.texts(list(self._phrases)).T


def _words(text: str) -> list[str]:
    return text.replace(",", "").split()


Learner = TissueLearner | PhraseLearner
ExpertRecipe = SupervisedRecipe | ContrastiveRecipe


def train(recipe: ExpertRecipe, run: RunWriter, stop_after: int | None = None) -> Run | None:
    """Train an expert with labels to a finished run; it has seen the train parts of its sets only. None: it stopped
    after `stop_after` more iterations."""
    tiles = labelled(recipe.sets)
    torch.manual_seed(recipe.seed)
    backbone = new_backbone(recipe.network, masked=False)
    begin(backbone, recipe.network, torch.Generator().manual_seed(recipe.seed))
    learner: Learner
    if isinstance(recipe, SupervisedRecipe):
        encoder = ImageEncoder(backbone)
        learner = TissueLearner(encoder, tiles, recipe.label_smoothing)
        weights: nn.Module = backbone
    else:
        encoder = ImageEncoder(backbone, recipe.dim)
        learner = PhraseLearner(encoder, tiles.phrases, recipe.temperature)
        weights = encoder
    if not fit(run, recipe, learner, tiles, stop_after):
        return None
    round_to_fp16(weights)
    save_weights(run.weights_path, weights)
    metrics = {
        "validation": _validate(learner.eval(), tiles, recipe),
        "tiles": len(tiles.labels_N),
        "classes": tiles.phrases,
    }
    return run.finish(metrics=metrics, seed=recipe.seed, data=tiles.sources, seen=tiles.seen)


def fit(run: RunWriter, recipe: ExpertRecipe, learner: Learner, tiles: Labelled, stop_after: int | None = None) -> bool:
    """All iterations, or `stop_after` more, from the last checkpoint on; whether all are done. What an iteration draws
    follows from the seed and its number."""
    training, checkpoint = recipe.training, run.work / "checkpoint.pt"
    matrices = [parameter for parameter in learner.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in learner.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, weight_decay=training.decay)
    rate = Schedule(training.rate, 0.0, training.iterations, training.warmup)
    done = 0
    if checkpoint.is_file():
        done = _restore(checkpoint, learner, optimiser)
    last = training.iterations if stop_after is None else min(training.iterations, done + stop_after)
    learner.train()
    for iteration in range(done, last):
        rng = np.random.default_rng((recipe.seed, iteration))
        torch.manual_seed(int(rng.integers(1 << 62)))  # drop-path is all that draws from it
        images, labels_B = tiles.draw(rng, training.batch)
        crops = [random_crop(image, recipe.crops.global_px, recipe.crops.global_scale, rng) for image in images]
        crops_BHWC = torch.from_numpy(np.stack([augmented(crop, recipe.augment, 0, rng) for crop in crops]))
        for group in optimiser.param_groups:
            group["lr"] = rate(iteration)
        loss = learner.loss(normalise(crops_BHWC, IMAGENET), labels_B, rng)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), training.clip)
        optimiser.step()
        if iteration % 10 == 0 or iteration + 1 == training.iterations:
            run.log("step", iteration=iteration, loss=round(float(loss.detach()), 5), rate=rate(iteration))
        if (iteration + 1) % recipe.checkpoints.every == 0 or iteration + 1 == last:
            state = {"learner": learner.state_dict(), "optimiser": optimiser.state_dict(), "done": iteration + 1}
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
    return last == training.iterations


def _restore(checkpoint: Path, learner: Learner, optimiser: torch.optim.Optimizer) -> int:
    """The iterations that were done. Raises WeightsInvalid."""
    try:
        saved = torch.load(checkpoint, weights_only=True)
        learner.load_state_dict(saved["learner"])
        optimiser.load_state_dict(saved["optimiser"])
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, UnpicklingError) as error:
        raise WeightsInvalid(
            "The run's checkpoint cannot be read whole, or is of another network. Begin the run anew in another folder."
        ) from error
    return int(saved["done"])


def _validate(learner: Learner, tiles: Labelled, recipe: ExpertRecipe) -> dict[str, dict[str, float]]:
    """Balanced accuracy on each set's validation part among the set's own kinds, and what chance would reach."""
    found = {}
    for number, name in enumerate(tiles.sets):
        columns = np.flatnonzero(tiles.sets_C == number)
        images_NHWC, labels_N = validation(name, [tiles.phrases[column] for column in columns])
        if len(np.unique(labels_N)) < 2:
            continue  # nothing to tell apart
        crops_NHWC = torch.from_numpy(resized(images_NHWC, recipe.crops.global_px))
        scores_NC = torch.cat([learner.scores(normalise(part, IMAGENET)) for part in crops_NHWC.split(64)]).numpy()
        accuracy = balanced_accuracy(scores_NC[:, columns], labels_N)
        found[name] = {
            "balanced_accuracy": round(accuracy, 4),
            "chance": round(1 / len(np.unique(labels_N)), 4),
            "tiles": len(labels_N),
        }
    return found
