"""The H&E corpus that encoders learn from without labels: tiles of 224 px of the sets' train parts and of whole slides.

    python -m training.data.corpus

prints what it holds. All is stained with haematoxylin and eosin but the glomeruli (periodic acid-Schiff): published
runs have learned from these, and can be run again. Only tier A goes in, and only what stands in no set's validation or
test part. Images are cut into tiles that overlap by about a quarter; slides are read through gateway.slides at 0.5 µm
per pixel. The tiles are decoded once, into one file below PATHSERVE_RUNS/cache that is named by what went into it.
"""

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gateway.slides import Slide, find_tissue, plan_tiles, stream_tiles
from training import command
from training.data.common import Source, data_root, read_image, require_tier
from training.data.dataset import Dataset, load
from training.data.dsb2018 import PURPLE
from training.data.seen import Seen
from training.data.split import held_out
from training.errors import DataMissing, TaskInvalid
from training.files import sha256_file
from training.runs import runs_folder

TILE_PX, _STRIDE_PX, _SLIDE_MPP = 224, 168, 0.5
_LEAST_STAINED, _STAINED = 0.05, 12
"""A tile counts where at least so much of it is coloured: its channels differ by so many grey levels."""

HE_SETS = (
    "crc9",
    "oral",
    "breakhis",
    "osteosarcoma",
    "ebhi",
    "camelyon",
    "consep",
    "glomeruli",
    "dsb2018",
)
HE_SLIDES = {
    "metaplasia_he": ("Pathology Atlas, intestinal metaplasia", "MIT", "stomach, intestinal metaplasia"),
    "cmu_small_he": ("OpenSlide test data, CMU-1 small region", "CC0", None),
}
"""Slide folder to its title, licence and weak label (the slides' own README)."""


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """images_NHWC: (N,S,S,3) uint8 RGB, mapped from disk (S = 224 in the corpus of H&E); labels: a weak phrase (organ,
    finding) a tile, None where nothing is known; sets_N, groups_N: (N,) str, where each tile comes from; sources: the
    files; seen: what a run that learns from it writes into its manifest."""

    images_NHWC: np.ndarray
    labels: tuple[str | None, ...]
    sets_N: np.ndarray
    groups_N: np.ndarray
    sources: tuple[Source, ...]
    seen: Seen
    sha256: str

    def __len__(self) -> int:
        return len(self.images_NHWC)

    def read(self, index: int) -> np.ndarray:
        """(S,S,3) uint8 RGB."""
        return np.array(self.images_NHWC[index])

    def name(self, index: int) -> str:
        """The tile's set, group and place, for logs."""
        return f"{self.sets_N[index]}/{self.groups_N[index]}/{index}"


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One set's or slide's share: its files, and the weak phrase and group of each."""

    name: str
    sources: tuple[Source, ...]
    phrases: tuple[str | None, ...]
    groups: tuple[str, ...]
    seen: Seen
    slide: bool = False


@dataclass(frozen=True, slots=True)
class Cut:
    """How images become square tiles that overlap a little; `mpp` is the µm per pixel at which slides are read. `wants`
    says which tiles stay, by a rule whose numbers are `rule`."""

    tile_px: int
    stride_px: int
    mpp: float
    wants: Callable[[np.ndarray], bool]
    rule: tuple[float, ...]


def he_corpus(sets: Collection[str] = ()) -> Corpus:
    """The corpus of these of HE_SETS and HE_SLIDES; all, where none is named.

    Raises DataMissing, TaskInvalid for another name, and what gateway.slides raises of a slide.
    """
    known = (*HE_SETS, *HE_SLIDES)
    for name in sets:
        if name not in known:
            raise TaskInvalid(f"The corpus has no set {name!r}. Name some of: {', '.join(known)}.")
    chosen = [name for name in known if not sets or name in sets]
    parts = [slide_part(name, HE_SLIDES) if name in HE_SLIDES else set_part(load(name)) for name in chosen]
    return tiled(parts, Cut(TILE_PX, _STRIDE_PX, _SLIDE_MPP, _stained, (_LEAST_STAINED, _STAINED)))


def tiled(parts: Sequence[Part], cut: Cut) -> Corpus:
    """The tiles of some parts, decoded once. Raises DataMissing and what gateway.slides raises of a slide."""
    key = hashlib.sha256(json.dumps([cut.tile_px, cut.stride_px, cut.mpp, *cut.rule]).encode())
    for part in parts:
        key.update(repr((part.name, [source.sha256 for source in part.sources], part.phrases, part.groups)).encode())
    sha256 = key.hexdigest()
    path = runs_folder() / "cache" / f"corpus-{sha256[:16]}.npy"
    if not path.with_suffix(".json").is_file():
        _write(parts, cut, path)
    of_part, of_file = np.array(json.loads(path.with_suffix(".json").read_bytes()), np.int64).T
    rows = list(zip(of_part.tolist(), of_file.tolist(), strict=True))
    return Corpus(
        images_NHWC=np.load(path, mmap_mode="r"),
        labels=tuple(parts[part].phrases[file] for part, file in rows),
        sets_N=np.array([parts[part].name for part, _ in rows]),
        groups_N=np.array([parts[part].groups[file] for part, file in rows]),
        sources=tuple(source for part in parts for source in part.sources),
        seen=Seen.union(part.seen for part in parts),
        sha256=sha256,
    )


def set_part(dataset: Dataset) -> Part:
    """The train part's whole images, of a set of two stains those of haematoxylin and eosin."""
    train_K = held_out(dataset, allow_missing=True).indices("train")
    if dataset.cohort_N is not None:
        train_K = train_K[dataset.cohort_N[train_K] != PURPLE]
    # Several items may be boxes of one image: it is read once, under the finest label that all of them share.
    items: dict[Source, set[int]] = {}
    groups = {}
    for index in train_K.tolist():
        items.setdefault(dataset.sources[index], set()).add(int(dataset.strata_N[index]))
        groups[dataset.sources[index]] = str(dataset.groups_N[index])
    for source in items:
        require_tier(source, "A")
    return Part(
        dataset.name,
        tuple(items),
        tuple(_phrase(dataset, strata) for strata in items.values()),
        tuple(groups[source] for source in items),
        Seen.of(dataset, train_K),
    )


def _phrase(dataset: Dataset, strata: set[int]) -> str:
    (stratum,) = strata if len(strata) == 1 else (-1,)
    return dataset.organ if stratum < 0 else f"{dataset.organ}, {dataset.strata[stratum]}"


def slide_part(name: str, slides: Mapping[str, tuple[str, str, str | None]]) -> Part:
    """One of some slides, named by its folder, each with its title, licence and weak label. Raises DataMissing."""
    title, licence, phrase = slides[name]
    files = sorted((data_root() / "slides" / name).glob("*.dcm"))
    if not files:
        raise DataMissing(f"The data folder holds no slide {name}. Fetch the data again.")
    sources = tuple(
        Source(f"slides/{name}/{file.name}", title, sha256_file(file), licence, "A", "", name) for file in files
    )
    phrases, groups = (phrase,) * len(files), (name,) * len(files)
    return Part(name, sources, phrases, groups, Seen({"slides": (name,)}, ()), slide=True)


def _write(parts: Sequence[Part], cut: Cut, path: Path) -> None:
    """Decode every tile into `path` and, last, which part and file each is of into its `.json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw, whole, listed = (path.with_suffix(f".{os.getpid()}{suffix}") for suffix in (".raw", ".npy", ".json"))
    rows = []
    try:
        with raw.open("wb") as file:
            for number, part in enumerate(parts):
                for place, tile_HWC in _slide_tiles(part, cut) if part.slide else _image_tiles(part, cut):
                    if cut.wants(tile_HWC):
                        rows.append((number, place))
                        file.write(tile_HWC.tobytes())
        if not rows:
            raise DataMissing("The sets hold no tile with anything in it. Name more sets for the corpus.")
        np.save(whole, np.memmap(raw, np.uint8, "r", shape=(len(rows), cut.tile_px, cut.tile_px, 3)))
        listed.write_text(json.dumps(rows))
        whole.replace(path)
        listed.replace(path.with_suffix(".json"))
    finally:
        for file in (raw, whole, listed):
            file.unlink(missing_ok=True)


def _image_tiles(part: Part, cut: Cut) -> Iterator[tuple[int, np.ndarray]]:
    for place, source in enumerate(part.sources):
        image = read_image(data_root(), source)
        for top in _starts(image.shape[0], cut):
            for left in _starts(image.shape[1], cut):
                yield place, image[top : top + cut.tile_px, left : left + cut.tile_px]


def _slide_tiles(part: Part, cut: Cut) -> Iterator[tuple[int, np.ndarray]]:
    files = [data_root() / source.file for source in part.sources]
    with Slide.open(files) as slide:
        plan = plan_tiles(slide, find_tissue(slide), mpp=cut.mpp, tile_px=cut.tile_px)
        for batch in stream_tiles(slide, plan, batch=32):
            yield from ((0, tile) for tile in batch.images_BHWC)


def _starts(length_px: int, cut: Cut) -> list[int]:
    """Where tiles begin along a side: about every stride, spread evenly from edge to edge; one in the middle at least.

    Raises DataMissing for a side below a tile's."""
    rest = length_px - cut.tile_px
    if rest < 0:
        raise DataMissing(
            f"An image of {length_px} px holds no tile of {cut.tile_px} px. Leave its set out of the corpus."
        )
    steps = round(rest / cut.stride_px)
    return [rest // 2] if steps == 0 else [round(rest * step / steps) for step in range(steps + 1)]


def _stained(tile_HWC: np.ndarray) -> bool:
    return float((np.ptp(tile_HWC, axis=2) >= _STAINED).mean()) >= _LEAST_STAINED


def describe(corpus: Corpus) -> str:
    """Tiles, images and groups by set, licence tiers, and the tiles of each weak label."""
    lines = [f"{'set':16}{'tiles':>8}{'groups':>8}"]
    for name in dict.fromkeys(corpus.sets_N.tolist()):
        inside = corpus.sets_N == name
        lines.append(f"{name:16}{inside.sum():8}{len(np.unique(corpus.groups_N[inside])):8}")
    lines.append(f"{'all':16}{len(corpus):8}")
    tiers = Counter(f"{source.licence} (tier {source.tier})" for source in corpus.sources)
    lines += ["", *(f"{licence}: {files} files" for licence, files in sorted(tiers.items()))]
    phrases = Counter(label or "no label" for label in corpus.labels)
    lines += ["", *(f"{count:6}  {label}" for label, count in phrases.most_common())]
    return "\n".join([*lines, "", f"sha256 {corpus.sha256}"])


def main() -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    return command.status(lambda: print(describe(he_corpus())), "The corpus")


if __name__ == "__main__":
    sys.exit(main())
