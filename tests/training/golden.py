"""Reference outputs of the published implementations, and the arrays that their README defines by a sine recipe."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

_CHECKOUT = Path(__file__).resolve().parents[2]
# Read when imported: tests that make a data folder of their own change the environment later.
_DATA = Path(os.environ.get("PATHSERVE_DATA") or _CHECKOUT.parent / "shared" / "data")


def case(name: str) -> dict[str, Any]:
    """One case of cases.json. Skips where the folder is absent."""
    path = _DATA.parent / "specs" / "golden" / "cases.json"
    if not path.is_file():
        pytest.skip("the golden numbers are not beside the data")
    return json.loads(path.read_text(encoding="utf-8"))[name]


def tensor(spec: dict[str, Any]) -> Tensor:
    """{shape, f, ph}: value i in row-major order is sin(f·i + ph) + 0.5·cos(1.7·f·i)."""
    i = np.arange(int(np.prod(spec["shape"])), dtype=np.float64)
    value = np.sin(spec["f"] * i + spec["ph"]) + 0.5 * np.cos(1.7 * spec["f"] * i)
    return torch.from_numpy(value.reshape(spec["shape"]).astype(np.float32))


def weights(spec: dict[str, Any]) -> dict[str, Tensor]:
    """{scale, tensors: [{name, shape}, …]} as a state; k counts the names in byte order."""
    made = {}
    for k, (name, shape) in enumerate(sorted((entry["name"], entry["shape"]) for entry in spec["tensors"])):
        i = np.arange(int(np.prod(shape)), dtype=np.float64)
        value = spec["scale"] * np.sin(0.37 * i + 0.11 * k + 0.5)
        if name.endswith(("norm.weight", "weight_g")):
            value += 1
        made[name] = torch.from_numpy(value.reshape(shape).astype(np.float32))
    return made
