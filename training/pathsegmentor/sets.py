"""What each set annotates, in the words of prompts: its level, its objects, which of them it annotates exhaustively.

"Not annotated" is never "absent" (the partial-label rule): an image of MoNuSeg holds lymphocytes that nobody marked. An
object may be asked for as absent only where its set annotates it exhaustively and it is not there, or where it cannot
be in that organ at all (`impossible`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.domain.prompts import UNSPECIFIED, Level, Triple

MPP: Mapping[Level, float] = {Level.TISSUE: 1.0, Level.CELL: 0.25, Level.NUCLEI: 0.25}
"""µm per pixel at which each level is learned and served."""

FEWEST_PX = 41
"""An object of fewer pixels in a crop, but more than none, is neither present nor absent."""

CANNOT_BE: Mapping[tuple[Level, str], frozenset[str]] = {
    (Level.TISSUE, "glomerulus"): frozenset({"colon", "lymph node", "breast", "lung", "prostate", "stomach", "liver"}),
    (Level.TISSUE, "polyp"): frozenset({"kidney", "lymph node"}),
}
"""Objects and the organs that never hold them: glomeruli are the kidney's, and solid organs have no polyps."""

KIND_OF: Mapping[tuple[Level, str], str] = {(Level.TISSUE, "polyp"): "gland"}
"""Objects that are outlined by a commoner one of their level: a polyp by its glands. That a network tells one from the
other is known only where the commoner is there and it is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotated:
    """What a set of `training.data` annotates.

    objects: by the number of a mask's category, the objects that its pixels belong to; organs: the regions of its
    images, one for all or one for each label of the set; exhaustive: objects of which nothing is left out where one of
    the image's own categories, or (`everywhere`) any of the set's, is annotated; nominal_mpp: the scale of its files,
    taken for them where `mpp_known` is False, from the size of what they show; cohort: that to which the set is cut,
    where it has several; stain: of its images, as a card names stains; red: whether copies with red and blue exchanged
    are about, so that it is checked.
    """

    level: Level
    objects: Mapping[int, tuple[str, ...]]
    organs: tuple[str, ...]
    exhaustive: frozenset[str]
    everywhere: bool = True
    nominal_mpp: float = 0.25
    mpp_known: bool = True
    cohort: str | None = None
    stain: str = "HE"
    red: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The objects, each once."""
        return tuple(dict.fromkeys(name for names in self.objects.values() for name in names))


SETS: Mapping[str, Annotated] = {
    # Four kinds of nuclei; together they are all nuclei.
    "consep": Annotated(
        level=Level.NUCLEI,
        objects={
            1: ("miscellaneous", "nucleus"),
            2: ("inflammatory", "nucleus"),
            3: ("epithelial", "nucleus"),
            4: ("spindle", "nucleus"),
        },
        organs=("colon",),
        exhaustive=frozenset({"miscellaneous", "inflammatory", "epithelial", "spindle", "nucleus"}),
    ),
    # Many magnifications, none told: nuclei are 10 to 60 pixels wide. The purple stain is not learned.
    "dsb2018": Annotated(
        level=Level.NUCLEI,
        objects={1: ("nucleus",)},
        organs=(UNSPECIFIED,),
        exhaustive=frozenset({"nucleus"}),
        mpp_known=False,
        cohort="HE",
    ),
    # Periodic acid-Schiff. Tiles of 0.5 µm per pixel, had they not been resized before; then reduced from 1024 to 768:
    # glomeruli of the median size are 157 µm wide at that scale, cut ones among them.
    "glomeruli": Annotated(
        level=Level.TISSUE,
        objects={1: ("glomerulus",)},
        organs=("kidney",),
        exhaustive=frozenset({"glomerulus"}),
        nominal_mpp=2 / 3,
        mpp_known=False,
        stain="PAS",
    ),
    # The masks outline glands with their lumen (in carcinoma: its nests), and an image has one category: a polyp is
    # outlined by its glands. What the category does not say is not known: no image says that it has no tumor.
    "ebhi": Annotated(
        level=Level.TISSUE,
        objects={
            1: ("epithelial", "tumor"),
            2: ("epithelial", "gland"),
            3: ("epithelial", "gland"),
            4: ("epithelial", "gland"),
            5: ("epithelial", "gland", "polyp"),
            6: ("epithelial", "gland", "polyp"),
        },
        organs=("colon",),
        exhaustive=frozenset({"epithelial", "gland", "polyp", "tumor"}),
        everywhere=False,
        nominal_mpp=0.5,
        mpp_known=False,
    ),
    # Coarse masks of metastases of breast cancer.
    "camelyon": Annotated(
        level=Level.TISSUE,
        objects={1: ("tumor",)},
        organs=("lymph node",),
        exhaustive=frozenset({"tumor"}),
        nominal_mpp=0.5,
        mpp_known=False,
    ),
}
"""Sets of tier A: what ships is trained on them."""

EXTERNAL: Mapping[str, Annotated] = {
    "monuseg": Annotated(
        level=Level.NUCLEI,
        objects={1: ("nucleus",)},
        organs=("breast", "kidney", "lung", "prostate", "bladder", "colon", "stomach"),
        exhaustive=frozenset(),
    ),
    # Four kinds are annotated, all others are not: their union is not "all nuclei".
    "monusac": Annotated(
        level=Level.NUCLEI,
        objects={1: ("epithelial",), 2: ("lymphocyte",), 3: ("macrophage",), 4: ("neutrophil",)},
        organs=("breast", "kidney", "lung", "prostate"),
        exhaustive=frozenset({"epithelial", "lymphocyte", "macrophage", "neutrophil"}),
        red=True,
    ),
}
"""Sets of tier B: other sources, for measuring only, never in a training."""


def impossible(level: Level, organ: str) -> tuple[str, ...]:
    """The objects that cannot be in an organ."""
    return tuple(name for (of_level, name), organs in CANNOT_BE.items() if of_level == level and organ in organs)


def listed() -> tuple[Triple, ...]:
    """What `prompts.csv` lists: everything that a set annotates, in its organs and without one."""
    triples: dict[Triple, None] = {}
    for annotated in (*SETS.values(), *EXTERNAL.values()):
        for name in annotated.names:
            for organ in (*annotated.organs, UNSPECIFIED):
                triples[Triple(annotated.level, name, organ)] = None
    return tuple(sorted(triples))
