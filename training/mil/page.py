"""The page of the slide heads, made of their runs: `python -m training.mil.page RUN... --out docs/slide-heads.md`.

RUN is a run folder; only its recipe, metrics and manifest are read.
"""

import argparse
import sys
from pathlib import Path

from training import command
from training.files import write_atomic
from training.mil.evaluate import HEAD, SCORES
from training.pages import interval, score_table, shown

_KINDS = {
    "abmil": "Attention pooling (arXiv 1802.04712): logits, and attention by tile, which sums to 1. The order of the "
    "tiles does not count.",
    "transmil": "TransMIL (arXiv 2106.00908), with the exact number of tiles in the graph: logits. The order of the "
    "tiles counts: row-major, as of the grid.",
}

_INTRODUCTION = """# Slide heads

Research use, not a medical device. A slide head takes the embeddings of all tiles under a slide's tissue (a *bag*) and
answers one question of the slide: does it show adenocarcinoma of colon or rectum?

**No public slide labels are used here: the slides are composed.** A composed slide is a bag of real colorectal tiles
(CRC-VAL-HE-7K, CC BY 4.0, 224 px at 0.5 µm per pixel), 1 to 4,000 of them; half of the slides hold tiles of
adenocarcinoma epithelium, on a share that is log-uniform from 2 % to all, one at least. The rest is drawn from the six
other classes, cancer-associated stroma among them, in proportions that differ from slide to slide. Each tile stands in
one of its eight orientations, in training with mild stain jitter too, and in random order.

**There are 70 tiles in all, ten a class, of unknown patients.** A split gives seven tiles of adenocarcinoma to training
and three to test (near-duplicates stay together), so a test slide, however large, shows at most three different tumour
tiles. The figures say that the machinery works; they say nothing of real slides.

`[low, high]` is the 95 % interval of a bootstrap in two stages: splits of the tiles are drawn, then slides within each.
Seeds are splits: each has its own tiles, slides and weights. The number of epochs, the temperature and the operating
point are chosen on inner folds of the training tiles; test tiles are read once. The served head was then trained on all
tiles in the same way, so that no tile is left to measure it on: the figures are those of the heads of the splits.
"""


def page(folders: list[Path]) -> str:
    """The page of some run folders, in Markdown. Raises RunInvalid."""
    made = "python -m training.mil.page " + " ".join(map(str, folders)) + " --out docs/slide-heads.md"
    text = [_INTRODUCTION, "This page is made by the command, not by hand:", "", f"    {made}"]
    for folder in folders:
        text += ["", *_section(folder)]
    return "\n".join(text) + "\n"


def _section(folder: Path) -> list[str]:
    run = shown(folder, "mil")
    recipe, metrics = run.recipe, run.metrics
    slides, point = metrics["slides"], metrics["operating_point"]
    controls = recipe.get("control_splits", recipe.get("splits", 5))
    lines = [
        f"## {recipe['publish']['model']}",
        "",
        f"{_KINDS[recipe['head']]} Width {recipe.get('hidden', 512)} (published: 512).",
        "",
        f"{run.origin}; "
        f"{metrics['splits']} splits ({controls} of the baseline and the controls), {slides['test']} test slides each.",
        "",
        f"    python -m training.mil.train training/recipes/{recipe['name']}.toml",
        "",
        *score_table("row", SCORES, metrics["rows"]),
        "",
        "At the operating point a slide is answered where its top probability is high enough: the least step of 0.05 "
        f"between 0.50 and 0.95 at which {point['aim']:.0%} of the answers on slides of held-out tiles (inner folds) "
        f"are right, 0.95 if there is none. The served head's is {point['min_probability']:.2f}, where "
        f"{point['reached']:.0%} were right. What is not answered counts as missed in the last two columns.",
        "",
        f"AUROC by split, {HEAD}: {', '.join(f'{value:.2f}' for value in metrics['auroc_by_split'][HEAD])}.",
        "",
    ]
    if planted := metrics.get("planted_tile_first"):
        low, high = planted["tiles"]
        lines += [
            f"One tile of adenocarcinoma among {low - 1} to {high - 1} others: attention ranks it first in "
            f"{interval(planted)} of {planted['slides']} such slides.",
            "",
        ]
    lines += ["| slides | right | number |", "|---|---|---|"]
    lines += [
        f"| {name} | {kind['right']:.2f} | {kind['slides']} |" for name, kind in metrics["kinds_of_slides"].items()
    ]
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.mil.page", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    return command.status(lambda: write_atomic(chosen.out, page(chosen.runs).encode()), "The page")


if __name__ == "__main__":
    sys.exit(main())
