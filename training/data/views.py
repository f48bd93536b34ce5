"""Views of a tile: its eight orientations, and the same with mild stain jitter; and its colour statistics."""

import numpy as np

VIEWS = {"none": 1, "orientations": 8, "orientations+jitter": 16}
"""How many of a tile's views each augmentation uses, counted from the first (the tile itself)."""


def view(image_HWC: np.ndarray, index: int, rng: np.random.Generator) -> np.ndarray:
    """One of 16 views (H,W,3) uint8: 0 the tile itself, 1 to 7 its other orientations, 8 to 15 the eight jittered."""
    flipped = image_HWC[:, ::-1] if index % 8 >= 4 else image_HWC
    oriented = np.ascontiguousarray(np.rot90(flipped, index % 4))
    return jitter(oriented, rng) if index >= 8 else oriented


def views(image_HWC: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """The first `count` views (V,H,W,3) uint8 of a square tile."""
    return np.stack([view(image_HWC, index, rng) for index in range(count)])


def jitter(image_HWC: np.ndarray, rng: np.random.Generator, factor: float = 0.1, shift: float = 0.02) -> np.ndarray:
    """Stain variation, mild if nothing else is said: every channel's optical density times 1 ± at most `factor`, plus
    at most ± `shift`."""
    density = -np.log10((image_HWC.astype(np.float32) + 1.0) / 256.0)
    density = density * rng.uniform(1 - factor, 1 + factor, 3).astype(np.float32)
    density = density + rng.uniform(-shift, shift, 3).astype(np.float32)
    return np.clip(np.rint(256.0 * 10.0**-density - 1.0), 0, 255).astype(np.uint8)


def colour_statistics(image_HWC: np.ndarray) -> np.ndarray:
    """(26,) float32, blind to texture: of red, green, blue and saturation the mean, deviation and 10/50/90 % points,
    and the three pairs of channels' covariances, and the mean of every channel's optical density."""
    rgb = image_HWC.reshape(-1, 3).astype(np.float64) / 255.0
    channels = np.column_stack([rgb, rgb.max(1) - rgb.min(1)])
    covariance = np.cov(rgb.T)
    return np.concatenate(
        [
            channels.mean(0),
            channels.std(0),
            np.percentile(channels, (10, 50, 90), axis=0).ravel(),
            covariance[np.triu_indices(3, 1)],
            -np.log10(rgb + 1 / 256).mean(0),
        ]
    ).astype(np.float32)
