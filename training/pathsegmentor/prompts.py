"""`prompts.csv`: which triples a model was trained on, and how well; the only list of them."""

import csv
import io
from collections.abc import Iterable

from gateway.domain.prompts import PROMPT_COLUMNS, PromptRow


def prompts_csv(rows: Iterable[PromptRow]) -> bytes:
    """The table, as gateway.domain.prompts.read_prompts reads it; rows in their own order."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(PROMPT_COLUMNS)
    for row in rows:
        dice = "" if row.val_dice is None else f"{row.val_dice:.4f}"
        supported = "true" if row.supported else "false"
        triple = row.triple
        writer.writerow((triple.level, triple.object, triple.region, row.train_images, dice, supported))
    return text.getvalue().encode()
