"""The table of prompts is written as the gateway reads it."""

import pytest

from gateway.domain.prompts import Level, PromptRow, Triple, read_prompts
from training.pathsegmentor.prompts import prompts_csv

pytestmark = pytest.mark.training


def test_what_is_written_is_read() -> None:
    rows = (
        PromptRow(Triple(Level.NUCLEI, "epithelial", "colon"), 83, 0.6531, True),
        PromptRow(Triple(Level.TISSUE, "blood vessel", "head and neck"), 0, None, False),
    )
    data = prompts_csv(rows)
    assert data.splitlines()[:2] == [
        b"level,object,region,train_images,val_dice,supported",
        b"nuclei,epithelial,colon,83,0.6531,true",
    ]
    assert read_prompts(data.decode()) == rows
