"""When two engines agree: the thresholds, stated once, and the figures that are held against them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

THRESHOLDS = {
    "fp32": {
        "max_abs_relative": 1e-4,  # of the reference's largest magnitude; G1 of the export gate
        "min_cosine": 0.999999,
        "max_flips": 0.0,
        "max_invariance": 1e-5,
    },
    "fp16": {"max_abs_relative": 5e-2, "min_cosine": 0.9995, "max_flips": 1e-3, "max_invariance": 1e-2},
    "bf16": {"max_abs_relative": 2e-1, "min_cosine": 0.9995, "max_flips": 1e-3, "max_invariance": 5e-2},
    "tiles": 5000,  # fewer make the comparison `reduced`, which approves nothing
    "operating_point_band": 0.02,  # a tile this near to the point may change sides, and no other
}


def parity(found_ND: Tensor, reference_ND: Tensor) -> dict[str, Any]:
    """Worst sample, never the mean: largest difference, the same over the reference's magnitude, least cosine."""
    found, reference = found_ND.double().cpu(), reference_ND.double().cpu()
    finite = bool(torch.isfinite(found).all())
    if not finite:
        return {"samples": len(found), "finite": False, "max_abs": None, "max_abs_relative": None, "min_cosine": None}
    largest = float((found - reference).abs().max())
    cosine = torch.nn.functional.cosine_similarity(found, reference, dim=1)
    return {
        "samples": len(found),
        "finite": True,
        "max_abs": largest,
        "max_abs_relative": largest / float(reference.abs().max()),
        "min_cosine": float(cosine.min()),
    }


def parity_failures(figures: dict[str, Any], dtype: str) -> list[str]:
    """What of a parity is outside the thresholds of its precision; empty where it passes."""
    limits = THRESHOLDS[dtype]
    if not figures["finite"]:
        return ["NaN or infinite values"]
    failures = []
    if figures["max_abs_relative"] > limits["max_abs_relative"]:
        failures.append(f"relative difference {figures['max_abs_relative']:.2e} > {limits['max_abs_relative']:.0e}")
    if figures["min_cosine"] < limits["min_cosine"]:
        failures.append(f"worst cosine {figures['min_cosine']:.6f} < {limits['min_cosine']}")
    return failures


def agreement(found_NC: Tensor, reference_NC: Tensor, point: float) -> dict[str, Any]:
    """Do two sets of logits say the same of every tile?

    A tile is answered where its top probability is at least `point`. `flips` are other top classes; `crossings` are
    tiles that are answered by one engine only; those whose reference probability lies further from the point than
    the stated band are `crossings_outside`; `answered_flips` are other classes where both answer.
    """
    found, reference = found_NC.double().cpu().softmax(1), reference_NC.double().cpu().softmax(1)
    (found_top, found_class), (top, label) = found.max(1), reference.max(1)
    flipped = found_class != label
    crossed = (found_top >= point) != (top >= point)
    outside = (top - point).abs() > THRESHOLDS["operating_point_band"]
    return {
        "tiles": len(label),
        "flips": int(flipped.sum()),
        "flip_share": float(flipped.double().mean()),
        "answered_flips": int((flipped & (found_top >= point) & (top >= point)).sum()),
        "crossings": int(crossed.sum()),
        "crossings_outside": int((crossed & outside).sum()),
        "max_probability_difference": float((found - reference).abs().max()),
        "operating_point": point,
    }


def agreement_failures(figures: dict[str, Any], dtype: str) -> list[str]:
    failures = []
    if figures["flip_share"] > THRESHOLDS[dtype]["max_flips"]:
        failures.append(f"label flips {figures['flip_share']:.2%} > {THRESHOLDS[dtype]['max_flips']:.1%}")
    if figures["answered_flips"]:
        failures.append(f"{figures['answered_flips']} answered tiles change their class")
    if figures["crossings_outside"]:
        failures.append(f"{figures['crossings_outside']} tiles cross the operating point outside its band")
    return failures


def invariance(engine: Callable[[Tensor], Tensor], images_BHWC: Tensor) -> dict[str, Any]:
    """What an image's answer depends on besides the image, as largest differences over the largest magnitude.

    `twice`: the same batch again. `neighbours`: other images around it, same place, same batch size (0 means that no
    patient's result depends on another's). `place`: first or last of the batch. `size`: alone or in the full batch.
    """
    full = engine(images_BHWC).clone()
    scale = float(full.abs().max())
    others = images_BHWC.flip(0).clone()
    others[0] = images_BHWC[0]
    moved = torch.cat((images_BHWC[1:], images_BHWC[:1]))
    found = {
        "twice": engine(images_BHWC).clone() - full,
        "neighbours": engine(others).clone()[0] - full[0],
        "place": engine(moved).clone()[-1] - full[0],
        "size": engine(images_BHWC[:1].contiguous()).clone()[0] - full[0],
    }
    return {"batch": len(images_BHWC)} | {name: float(gap.abs().max()) / scale for name, gap in found.items()}


def invariance_failures(figures: dict[str, Any], dtype: str) -> list[str]:
    """G4: repeating and the neighbours change no bit; place and batch size stay inside the bound."""
    bound = THRESHOLDS[dtype]["max_invariance"]
    failures = [
        f"{name} changes the answer by {figures[name]:.1e}" for name in ("twice", "neighbours") if figures[name]
    ]
    return failures + [
        f"{name} changes the answer by {figures[name]:.1e} > {bound:.0e}"
        for name in ("place", "size")
        if not figures[name] <= bound  # a NaN is outside, too
    ]
