"""What the results page says of the network as it is served: its engines, its windows, and objects on slides."""

from collections.abc import Iterator, Mapping
from typing import Any

from training.errors import RunInvalid
from training.pathsegmentor.markdown import NOT_RUN, p_value, shown, table

SERVED, SLIDE_OBJECTS = "served.json", "slide_objects.json"


def held_against(served: Mapping[str, Any], beside: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Raises RunInvalid for a file that is of other weights than the served network's, or does not say of which."""
    for name, found in beside.items():
        if found is not None and found.get("weights_sha256") != served["weights_sha256"]:
            raise RunInvalid(f"{name} is not of the weights of {served['recipe']}.json. Measure the older one anew.")


def engines(found: Mapping[str, Any] | None) -> list[str]:
    """The section of served.json (`exporters.segmentor_check`)."""
    lines = ["## Engines and windows", ""]
    if found is None:
        return [*lines, f"{NOT_RUN.capitalize()}.", ""]
    engine, windows = found["engine"], found["windows"]
    bounds, said = engine["bounds"], {True: "met", False: "**not met**"}
    return [
        *lines,
        "    python -m exporters.segmentor_check model_repository training/released/pathseg "
        "--out docs/results/pathsegmentor/served.json",
        "",
        f"The released engines, asked through Triton, against the network in PyTorch on the same windows of all "
        f"{engine['images']} held-out images: of {engine['pairs']} pairs the greatest difference of Dice is "
        f"{engine['largest']:.1e} (bound {bounds['dice']:.0e}: {said[engine['largest'] < bounds['dice']]}), of a "
        f"probability of presence {engine['largest_presence']:.1e} (bound {bounds['presence']:.0e}: "
        f"{said[engine['largest_presence'] < bounds['presence']]}); {engine['flipped_px']:,} pixels are decided "
        "otherwise. Between layers a query attends where its mask is at least as likely as not, so that a last bit can "
        "decide such a place otherwise.",
        "",
        *table(("set", "Dice, engines", "Dice, PyTorch", "greatest difference", "pairs"), _rows(engine["by_set"])),
        f"Windows of 256 px, blended, against one pass over the whole image (both PyTorch), {windows['images']} images "
        "larger than a window; the network learned from crops of 128 px, and what it is asked attends to all of an "
        f"image. The bound of {windows['bounds']['dice']:.0e} for each pair's Dice is "
        f"{said[windows['met']]}: the greatest difference is {windows['largest']:.2f}.",
        "",
        *table(
            ("set", "windows", "whole image", "windows minus whole", "p", "greatest difference", "pairs"),
            (
                (
                    name,
                    shown(row["first"]),
                    shown(row["second"]),
                    shown(row["difference"], sign=True),
                    p_value(row["difference"]["p"]),
                    f"{row['largest']:.2f}",
                    str(row["difference"]["pairs"]),
                )
                for name, row in windows["by_set"].items()
            ),
        ),
    ]


def _rows(by_set: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, row in by_set.items():
        yield name, shown(row["first"]), shown(row["second"]), f"{row['largest']:.1e}", str(row["difference"]["pairs"])


def slide_objects(found: Mapping[str, Any] | None, overlap: Mapping[str, Any]) -> list[str]:
    """The section of slide_objects.json; `overlap`: the held-out figures by set and prompt, for each object's own
    Dice."""
    lines = ["## Importance of objects, as it is served", ""]
    if found is None:
        return [*lines, f"{NOT_RUN.capitalize()}.", ""]
    tiles, repeats = found["settings"]["explain.tiles"], found["settings"]["explain.repeats"]
    real, composed = found["real"]["slides"], found["composed"]["slides"]
    lines += [
        "`pathserve analyze --protocol slide-classification --prompt …` with the released models: masks of `pathseg`, "
        f"the slides' model `slide_abmil`, {tiles} tiles of most weight a slide, {repeats} random areas of tissue "
        "of equal size an object ([how](../slide-classification.md#what-objects-mean-to-the-answer)). The loss is that "
        "of the class the model finds most probable. `own Dice` is the object's on held-out images, as served.",
        "",
        "    python -m training.pathsegmentor.slide_objects "
        + " ".join(f"../shared/data/slides/{name}" for name in real)
        + f" --composed {len(composed)} --work ../runs/slide-objects "
        "--out docs/results/pathsegmentor/slide_objects.json",
        "",
        f"**Real slides: {len(real)}.** None has a label, and so few say nothing of real slides as a whole: each "
        "stands alone, beside the least and the greatest of its random areas.",
        "",
        *table(
            ("slide", "most probable", "object", "own Dice", "importance", "random areas", "weight a share of area"),
            (row for name, slide in real.items() for row in _objects(name, slide, overlap)),
        ),
    ]
    right = sum(slide["right"] for slide in composed.values())
    rows = (
        (
            prompt.removesuffix(" pathology"),
            _own_dice(prompt, overlap),
            str(row["slides"]),
            *((_three(row[key]) for key in ("imp", "control", "excess")) if "imp" in row else ("–",) * 3),
            f"{row['exceeds']}" if "imp" in row else "–",
            shown(row["enrichment"]) if "imp" in row else "–",
        )
        for prompt, row in found["composed"]["objects"].items()
    )
    return [
        *lines,
        f"**{len(composed)} composed slides**, every other one with tumour, of the labelled tiles that the slides' "
        f"model learned from (in sample; it is right about {right}): the mean loss with an object blurred over the "
        "mean loss before, the same of the random areas, and the difference, over the slides on which the object "
        "was found, with intervals over slides.",
        "",
        *table(
            (
                "object",
                "own Dice",
                "slides",
                "importance",
                "random areas",
                "importance minus random",
                "slides above all random areas",
                "weight a share of area",
            ),
            rows,
        ),
        *_told(found["composed"]["objects"]),
    ]


def _told(objects: Mapping[str, Any]) -> list[str]:
    measured = {prompt: row for prompt, row in objects.items() if "excess" in row}
    above = [prompt.removesuffix(" pathology") for prompt, row in measured.items() if row["excess"][1] > 0]
    below = [prompt.removesuffix(" pathology") for prompt, row in measured.items() if row["excess"][2] < 0]
    if not measured:
        return []
    return [
        f"Importance exceeds that of random areas, by its whole interval, for: {', '.join(above) or 'none of them'}. "
        + (f"It lies below it, by its whole interval, for: {', '.join(below)}. " if below else "")
        + "Of few slides an interval reaches no further than their worst and best.",
        "",
    ]


def _objects(name: str, slide: Mapping[str, Any], overlap: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for prompt, row in slide["objects"].items():
        told = row["importance"]
        yield (
            name,
            f"{slide['target']} ({max(slide['classes']):.2f})",
            prompt.removesuffix(" pathology"),
            _own_dice(prompt, overlap),
            "not found" if told is None else f"{told['ratio']:.2f}",
            "–" if told is None else "{mean:.2f} ({low:.2f} to {high:.2f})".format(**told["control"]),
            f"{row['weight_share'] / row['area_share']:.2f}" if row["area_share"] else "–",
        )


def _own_dice(prompt: str, overlap: Mapping[str, Any]) -> str:
    told = {name.split(" · ")[0]: row["served"] for name, row in overlap.items() if name.endswith(f" · {prompt}")}
    return ", ".join(f"{shown(row)} ({name})" for name, row in told.items()) or "–"


def _three(values: Any) -> str:
    value, low, high = values
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"
