"""The encoder's position embedding: sine-cosine at the start, resized for other grids.

timm and lightly have these formulas too, but take seconds to import, which a first mask would wait
for; tests compare with both.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

BASE = 10_000
"""Ratio of the longest wavelength to the shortest (arXiv 1706.03762, section 3.5)."""


def sine_cosine(x: NDArray[np.float32], y: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Positions as sines and cosines (arXiv 2111.06377, appendix A.1).

    Args:
        x: (N,).
        y: (N,).
        width: Of the embedding, a multiple of 4.

    Returns:
        (N, width): of x the sines and the cosines of each wavelength, then the same of y.
    """
    quarter = width // 4
    frequencies = 1 / BASE ** (np.arange(quarter, dtype=np.float32) / np.float32(quarter))
    phases = [np.outer(axis, frequencies) for axis in (x, y)]
    waves = [wave(phase) for phase in phases for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=1)


def resize(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """An embedding (1, h, w, C) for a grid of (H, W) tokens, (1, H, W, C): bicubic, antialiased."""
    if grid == tuple(positions.shape[1:3]):
        return positions
    channels = positions.float().permute(0, 3, 1, 2)
    resized = interpolate(channels, grid, mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1).to(positions.dtype)
