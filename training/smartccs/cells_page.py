"""The results page's sections of the cells themselves: where they come from, and what a detector misses of them."""

from gateway.domain.bethesda import NAMES
from training.markdown import NOT_RUN, shown, table
from training.smartccs.results import SHIPPED, Results, Row

_EVALUATE = "python -m training.smartccs.evaluate"
_LOOKS = {"raw": "as they are", "coloured": "mapped"}
_ONE_BLOCK = 0.9
"""The share of a class's cells in one block of a part from which the class is taken to be seen in that block alone."""


def not_run(title: str, asked: str) -> list[str]:
    """A section that nothing was measured for, and what would measure it."""
    return [f"## {title}", "", f"{NOT_RUN.capitalize()}:", "", f"    {asked}", ""]


def missed(found: Results, name: str) -> list[str]:
    """E3: annotated and found cells by class and centre, and the same bags before and after the losses."""
    title, there = "What the detector misses, by class and centre", found.by_centre("missed")
    asked = f"{_EVALUATE} missed {SHIPPED} --out {name}"
    if not there:
        return not_run(title, asked)
    classes = [kind for kind, number in next(iter(there.values()))["annotated"].items() if number]
    counts, bags = [], []
    for centre, told in there.items():
        for kind, looked in _LOOKS.items():
            row = told["found"][kind]
            counts.append(
                (
                    centre,
                    looked,
                    *(_of(row[each], told["annotated"][each]) for each in classes),
                    *(f"{told['detections'][kind][each]:,}" for each in ("again", "negative", "unknown")),
                )
            )
        bags.append((centre, "annotated cells", *_called(told["annotated_bags"]), ""))
        for mode, row in told["same_bags"].items():
            gain = shown(row["auc_gain"], sign=True, digits=3)
            bags.append((centre, f"what is left of them, {mode}", *_called(row), gain))
    first = next(iter(there.values()))
    lost = "; ".join(
        f"{centre} {told['lost']['raw']} and {told['empty']['raw']}, "
        f"with colours mapped {told['lost']['coloured']} and {told['empty']['coloured']}"
        for centre, told in there.items()
    )
    return [
        f"## {title}",
        "",
        "Annotated nuclei of the test fields that a detection hits, above the threshold that is served, and their "
        "share of all; beside them detections that hit a nucleus once more, that lie in fields where nothing is "
        "abnormal, and that lie at places of which nothing is known. The last are among the rest of all bags of "
        "detected cells, but in none of this section's, which are of annotated nuclei.",
        "",
        f"    {asked}",
        "",
        *table(("centre", "colours", *classes, "once more", "in negative fields", "unknown"), counts),
        f"{first['bags']} test bags ({first['abnormal']} abnormal) dealt of annotated cells, and the same bags with "
        "only those of their cells that the detector finds at the centre; heads and operating points are those of "
        "detected cells. A bag of which nothing is left counts as called normal. Abnormal bags that lost every cell "
        "of their "
        f"class, and bags that lost every cell: {lost}.",
        "",
        *table(("centre", "bags of", "AUC", "sensitivity", "specificity", "AUC, gain over annotated"), bags),
    ]


def _of(some: int, all_: int) -> str:
    return f"{some} of {all_} ({some / all_:.0%})" if all_ else "0"


def _called(row: Row) -> tuple[str, ...]:
    return tuple(shown(row[key], digits=3) for key in ("auc", "sensitivity", "specificity"))


def blocks(told: Row | None, name: str) -> list[str]:
    """Annotated cells by part, block and class, and which classes are of one block."""
    title, asked = "Where the cells come from", f"{_EVALUATE} blocks {SHIPPED} --out {name}"
    if told is None:
        return not_run(title, asked)
    classes = [
        kind for kind in NAMES if any(row["cells"][kind] for of in told["parts"].values() for row in of.values())
    ]
    rows, lopsided = [], []
    for part, blocks in told["parts"].items():
        for block, row in blocks.items():
            cells = (str(row["cells"][kind] or "–") for kind in classes)
            rows.append((part, f"`{block}`", str(row["fields"]), *cells))
        for kind in classes:
            numbers = {block: row["cells"][kind] for block, row in blocks.items()}
            most, total = max(numbers, key=lambda block: numbers[block]), sum(numbers.values())
            if total and numbers[most] >= _ONE_BLOCK * total:
                lopsided.append(f"{part}: {kind}, {numbers[most]} of {total} in `{most}`")
    return [
        f"## {title}",
        "",
        "Annotated nuclei by part and block of images, the unit by which parts are kept apart. Who is in a block is "
        f"not told; a class of which {_ONE_BLOCK:.0%} or more lie in one block of a part is seen there in the look of "
        "that block alone, of one smear or a few. What is told of it may be told of the block: its detection, its "
        "recall, "
        "and high-grade sensitivity. An interval over bags, cells or fields resamples inside the block and says "
        "nothing of how the figure would be in another; for such a class there is in effect one sample, "
        "and no interval.",
        "",
        f"    {asked}",
        "",
        *table(("part", "block", "fields", *classes), rows),
        f"So it is with {'; '.join(lopsided)}." if lopsided else "No class is so.",
        "",
    ]
