"""Pictures for the results page: trends as SVG, and cases that are chosen by rank, not by eye."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import cv2
import numpy as np

from training.files import write_atomic
from training.pathsegmentor.data import Item
from training.pathsegmentor.pairs import Table
from training.pathsegmentor.predictor import Asked, Predictor
from training.pathsegmentor.trends import ANSWERS, DESCRIPTORS, HELD

RANKS = {"good": 0.95, "typical": 0.5, "bad": 0.05}
"""Which quantile of Dice a picture shows."""
_COLOURS = {"dice": "#0b6e99", "box_union": "#b5541c"}
_TRUTH, _MASK = (16, 122, 52), (208, 28, 60)
_PANEL_PX = 224
_PLOT_PX = (300, 200)
_MARGIN_PX = (46, 14, 18, 40)
"""Left, right, top, bottom."""


def ranked(table: Table) -> Iterator[tuple[str, str, int]]:
    """(set, rank, row): of each set's pairs by Dice the row nearest to each of `RANKS` (own region, object present).
    Ties fall to the earlier image and prompt."""
    usable = np.flatnonzero((table["own"] == 1) & ~np.isnan(table["dice"]))
    for name in dict.fromkeys(table["set"][usable].tolist()):
        rows = usable[table["set"][usable] == name]
        order = sorted(rows, key=lambda row: (table["dice"][row], table["image"][row], table["prompt"][row]))
        for rank, share in RANKS.items():
            yield name, rank, int(order[round(share * (len(order) - 1))])


def write_pictures(folder: Path, predictor: Predictor, items: Sequence[Item], found: Mapping[str, Any]) -> None:
    """The trends of a measured network, and for each set one sheet with its good, typical and bad case. Only images of
    sets that may be shown with the network (tier A) are drawn."""
    for level, trend in found["trends"].items():
        for descriptor, content in trend["by"].items():
            write_atomic(folder / f"trend-{level}-{descriptor}.svg", trend_picture(content, descriptor, level))
    table, by_name = Table.read(found["pairs"]), {(item.set, item.name): item for item in items if item.tier == "A"}
    sheets: dict[str, list[np.ndarray]] = {}
    for name, _, row in ranked(table):
        item = by_name.get((name, table["image"][row]))
        if item is None:
            continue
        triple = next(triple for triple in item.triples if triple.text == table["prompt"][row])
        said = predictor(item.image_HWC, [Asked(triple)], item.set)
        sheets.setdefault(name, []).append(case(item, item.mask(triple), said.probabilities_PHW[0] > 0.5))
    for name, cases in sheets.items():
        write_atomic(folder / f"cases-{name}.jpg", sheet(cases))


def case(item: Item, truth_HW: np.ndarray, mask_HW: np.ndarray) -> np.ndarray:
    """(224, 448, 3) uint8: the image with the truth's outline (green), and with the network's (red)."""
    parts = []
    for outline, colour in ((truth_HW, _TRUTH), (mask_HW, _MASK)):
        picture = _square(item.image_HWC, cv2.INTER_AREA)
        edge = _square(outline.astype(np.uint8) * 255, cv2.INTER_LINEAR) > 127
        shapes, _ = cv2.findContours(edge.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        parts.append(cv2.drawContours(np.ascontiguousarray(picture), shapes, -1, colour, 1, cv2.LINE_AA))
    return np.hstack(parts)


def sheet(cases: Sequence[np.ndarray], quality: int = 80) -> bytes:
    """Cases side by side as one JPEG."""
    gap = np.full((_PANEL_PX, 6, 3), 255, np.uint8)
    whole = np.hstack([part for picture in cases for part in (picture, gap)][:-1])
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(whole, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert encoded
    return data.tobytes()


def _square(picture: np.ndarray, shape: int) -> np.ndarray:
    """The middle square, 224 px wide."""
    side = min(picture.shape[:2])
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    cut = np.ascontiguousarray(picture[top : top + side, left : left + side])
    return cv2.resize(cut, (_PANEL_PX, _PANEL_PX), interpolation=shape)


def trend_picture(trend: Mapping[str, Any], descriptor: str, level: str) -> bytes:
    """SVG of two plots: Dice over a descriptor within sets, and with size and density held too."""
    width, height = _PLOT_PX
    left, right, top, bottom = _MARGIN_PX
    outer = left + width + right
    body: list[str] = []
    for place, (kind, title) in enumerate((("alone", "within sets"), ("partial", HELD))):
        answers = {name: trend["answers"][name][kind] for name in ANSWERS}
        body.append(f'<g transform="translate({place * outer},0)">')
        body += _plot(trend["x"], answers, f"{level}: {title}", DESCRIPTORS[descriptor])
        body.append("</g>")
    total_width, total_height = 2 * outer, top + height + bottom
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_width} {total_height}" width="{total_width}" '
        f'height="{total_height}" font-family="sans-serif" font-size="11" role="img">'
        f"<title>{escape(f'Dice over {DESCRIPTORS[descriptor]}, {level}')}</title>"
        '<rect width="100%" height="100%" fill="#fff"/>'
    )
    return "\n".join([head, *body, "</svg>", ""]).encode()


def _plot(x: Sequence[float], answers: Mapping[str, Any], title: str, label: str) -> Iterable[str]:
    width, height = _PLOT_PX
    left, _, top, _ = _MARGIN_PX

    def across(value: float) -> float:
        return left + (value - x[0]) / (x[-1] - x[0]) * width

    def down(value: float) -> float:
        return top + (1 - value) * height

    def points(values: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{across(a):.1f},{down(b):.1f}" for a, b in values)

    yield f'<text x="{left}" y="12" fill="#222">{escape(title)}</text>'
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        yield (
            f'<line x1="{left}" x2="{left + width}" y1="{down(tick):.1f}" y2="{down(tick):.1f}" stroke="#ddd"/>'
            f'<text x="{left - 6}" y="{down(tick) + 4:.1f}" text-anchor="end" fill="#444">{tick:.2f}</text>'
        )
    for tick in np.linspace(x[0], x[-1], 5):
        yield (
            f'<text x="{across(tick):.1f}" y="{top + height + 14}" text-anchor="middle" fill="#444">{tick:.3g}</text>'
        )
    middle, below = left + width / 2, top + height + 30
    yield f'<text x="{middle}" y="{below}" text-anchor="middle" fill="#222">{escape(label)}</text>'
    for place, (name, line) in enumerate(answers.items()):
        colour = _COLOURS[name]
        band = [*zip(x, line["high"], strict=True), *reversed([*zip(x, line["low"], strict=True)])]
        yield f'<polygon points="{points(band)}" fill="{colour}" fill-opacity="0.15"/>'
        yield (
            f'<polyline points="{points(zip(x, line["y"], strict=True))}" fill="none" stroke="{colour}" '
            'stroke-width="1.6"/>'
        )
        yield (
            f'<text x="{left + width}" y="{top + height - 6 - 13 * place}" text-anchor="end" fill="{colour}">'
            f"{ANSWERS[name]}</text>"
        )
