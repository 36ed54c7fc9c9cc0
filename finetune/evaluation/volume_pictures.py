"""A picture of what the model made of a whole volume."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from finetune.inference.pictures import outline, show
from pretrain.engine.figures import save_figure

COLUMNS = 6


def draw_volume(
    slices: NDArray[Any],
    truth: NDArray[np.bool_],
    answers: Mapping[str, NDArray[np.bool_]],
    title: str,
    path: Path,
) -> None:
    """Some slices of a volume in a row with the truth, and one row of them for each answer.

    The slices lie at even distances, from one before the first to one after the last that holds the
    truth or an answer.

    Args:
        slices: (D, H, W) or (D, H, W, 3), uint8 or uint16.
        truth: (D, H, W), not empty; its outline is drawn on every answer.
        answers: (D, H, W) masks, by the title of their row.
    """
    touched = np.logical_or.reduce([truth, *answers.values()]).any((1, 2)).nonzero()[0]
    first, last = max(0, touched[0] - 1), min(len(truth) - 1, touched[-1] + 1)
    depths = np.unique(np.linspace(first, last, COLUMNS).round().astype(int))
    height, width = truth.shape[1:]
    rows = {"truth": truth, **answers}
    size = (2.4 * len(depths) + 0.4, (2.4 * height / width + 0.1) * len(rows) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(depths), squeeze=False)
    for line, (name, mask) in zip(grid, rows.items(), strict=True):
        for axes, depth in zip(line, depths, strict=True):
            show(axes, slices[depth], mask[depth])
            outline(axes, truth[depth])
        place = {"transform": line[0].transAxes, "ha": "right", "va": "center"}
        line[0].text(-0.03, 0.5, name, rotation="vertical", **place)
    for axes, depth in zip(grid[0], depths, strict=True):
        axes.set_title(f"slice {depth}")
    figure.suptitle(title)
    save_figure(figure, path)
