"""Made images whose objects have a colour each, and an answerer that knows the colours: the right figures are known."""

from collections.abc import Sequence

import numpy as np

from gateway.domain.prompts import Level
from training.pathsegmentor.data import Item
from training.pathsegmentor.predictor import Asked, Predicted, Said, blended

COLOURS = {2: (90, 60, 160), 3: (150, 40, 120)}
OBJECTS = {"inflammatory": (2,), "epithelial": (3,), "nucleus": (2, 3)}
BACKGROUND = (235, 200, 220)


def item(number: int, part: str = "test", *, dataset: str = "consep", tier: str = "A") -> Item:
    """Image `number` of group number // 3: a square of each object, but every third image lacks the second."""
    rng = np.random.default_rng(number)
    image = np.full((64, 64, 3), BACKGROUND, np.uint8)
    category = np.zeros((64, 64), np.uint8)
    for place, kind in enumerate((2, 3)):
        if kind == 3 and number % 3 == 2:
            continue
        top, side = int(rng.integers(2, 20)), int(rng.integers(10, 22))
        category[top : top + side, 4 + 30 * place : 4 + 30 * place + side] = kind
    for kind, colour in COLOURS.items():
        image[category == kind] = colour
    return Item(
        name=f"image_{number}",
        set=dataset,
        tier=tier,
        group=f"field {number // 2}",
        part=part,
        organ="colon",
        stain="HE",
        level=Level.NUCLEI,
        mpp_known=True,
        sources=(),
        image_HWC=image,
        category_HW=category,
        instances_HW=None,
        objects=OBJECTS,
        exhaustive=frozenset(OBJECTS),
        points={},
        hash=np.uint64(number),
    )


class Painter:
    """Marks the colours of the object that is asked for on the level of nuclei, and everything where the level is left
    out; on another level, nothing. Presence is right but for image sides of 64 px of the first group's look."""

    def __call__(
        self, image_HW3: np.ndarray, asked: Sequence[Asked], dataset: str, *, queries: bool = False
    ) -> Predicted:
        def answer(tile_HW3: np.ndarray) -> Said:
            masks = np.stack([self._mask(tile_HW3, prompt) for prompt in asked])
            every = np.stack([masks, ~masks], axis=1) if queries else None
            return np.where(masks, 2.0, -2.0).astype(np.float32), np.where(masks.any((1, 2)), 3.0, -3.0), every

        return blended(image_HW3, answer)

    @staticmethod
    def _mask(image_HW3: np.ndarray, prompt: Asked) -> np.ndarray:
        kinds = OBJECTS.get(prompt.triple.object, ())
        if "level" in prompt.without:
            kinds = (2, 3)
        elif prompt.triple.level != Level.NUCLEI:
            kinds = ()
        near = [np.abs(image_HW3.astype(int) - COLOURS[kind]).sum(-1) < 60 for kind in kinds]
        return np.any(near, axis=0) if near else np.zeros(image_HW3.shape[:2], bool)
