"""Pictures of stage two: Dice by number of clicks, and cases click by click."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from finetune.evaluation.tables import Summary
from finetune.inference.prompted import ClickStep
from pretrain.engine.figures import save_figure

PREDICTION_COLOUR = (0.1, 0.5, 1.0, 0.45)
TRUTH_COLOUR = "gold"
POSITIVE_COLOUR = "lime"
NEGATIVE_COLOUR = "red"


def draw_dice_by_clicks(
    runs: Mapping[str, Sequence[Summary]], clicks: Mapping[str, int], path: Path
) -> None:
    """A panel a target: mean Dice against clicks, with its 95 % interval, a line for each run.

    Args:
        runs: summaries of each run, by the name shown in the legend.
        clicks: number of clicks of each protocol to be shown.
    """
    targets = list(dict.fromkeys(row.target for rows in runs.values() for row in rows))
    columns = min(len(targets), 4)
    lines = -(-len(targets) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.2 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for place, axes in enumerate(grid.flat):
        if place >= len(targets):
            axes.axis("off")
            continue
        for name, rows in runs.items():
            own = [row for row in rows if row.target == targets[place] and row.protocol in clicks]
            numbers = [clicks[row.protocol] for row in own]
            (line,) = axes.plot(numbers, [row.dice.mean for row in own], marker="o", label=name)
            low, high = [row.dice.low for row in own], [row.dice.high for row in own]
            axes.fill_between(numbers, low, high, color=line.get_color(), alpha=0.15)
        axes.set(title=targets[place], xlabel="clicks", xticks=sorted(clicks.values()))
    grid[0, 0].set(ylabel="Dice", ylim=(0, 1))
    if len(runs) > 1:
        grid[0, 0].legend()
    save_figure(figure, path)


def draw_case(
    image: NDArray[Any],
    truth: NDArray[np.bool_],
    steps: Mapping[str, ClickStep],
    boxes: Mapping[str, tuple[ArrayLike, NDArray[np.bool_]]],
    title: str,
    path: Path,
) -> None:
    """An image, the truth, and the prediction after some clicks and from boxes, side by side.

    Args:
        image: (H, W) or (H, W, 3), uint8 or uint16.
        truth: (H, W); its outline is drawn on every prediction.
        steps: by the title of the panel; positive clicks are green, negative ones red.
        boxes: box and prediction (H, W), by the title of the panel.
    """
    height, width = truth.shape
    panels = 2 + len(steps) + len(boxes)
    figure = Figure(figsize=(2.4 * panels, 2.4 * height / width + 0.6), layout="constrained")
    row = figure.subplots(1, panels, squeeze=False)[0]
    show(row[0], image)
    row[0].set_title("image")
    show(row[1], image, truth)
    row[1].set_title("truth")
    for axes, (name, step) in zip(row[2:], steps.items(), strict=False):
        show(axes, image, step.prediction, step.points, step.labels)
        _outline(axes, truth)
        axes.set_title(name)
    for axes, (name, (box, prediction)) in zip(row[2 + len(steps) :], boxes.items(), strict=True):
        show(axes, image, prediction, box=box)
        _outline(axes, truth)
        axes.set_title(name)
    figure.suptitle(title)
    save_figure(figure, path)


def draw_prediction(
    image: NDArray[Any],
    mask: NDArray[np.bool_],
    path: Path,
    points: ArrayLike = (),
    labels: ArrayLike = (),
    box: ArrayLike | None = None,
) -> None:
    """An image with a predicted mask and the prompts it was made from."""
    height, width = mask.shape
    figure = Figure(figsize=(6, max(1.0, 6 * height / width)), layout="constrained")
    axes = figure.subplots()
    show(axes, image, mask, points, labels, box)
    _outline(axes, mask, PREDICTION_COLOUR[:3])
    save_figure(figure, path)


def show(
    axes: Axes,
    image: NDArray[Any],
    mask: NDArray[np.bool_] | None = None,
    points: ArrayLike = (),
    labels: ArrayLike = (),
    box: ArrayLike | None = None,
) -> None:
    """Draw an image with a mask, clicks and a box over it.

    Args:
        points: (n, 2) pixels (x, y).
        labels: (n,) 1 for green, 0 for red.
        box: x0, y0, x1, y1 in pixels, both ends inside.
    """
    axes.imshow(image, cmap="gray", vmin=0, vmax=np.iinfo(image.dtype).max)
    if mask is not None:
        axes.imshow(mask[..., None] * np.array(PREDICTION_COLOUR))
    places = np.asarray(points, dtype=float).reshape(-1, 2)
    colours = [POSITIVE_COLOUR if label else NEGATIVE_COLOUR for label in np.asarray(labels)]
    axes.scatter(places[:, 0], places[:, 1], c=colours, s=22, edgecolors="black", linewidths=0.6)
    if box is not None:
        x0, y0, x1, y1 = np.asarray(box, dtype=float) + np.array([-0.5, -0.5, 0.5, 0.5])
        axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=POSITIVE_COLOUR, linewidth=1)
    axes.set_xlim(-0.5, image.shape[1] - 0.5)
    axes.set_ylim(image.shape[0] - 0.5, -0.5)
    axes.axis("off")


def _outline(axes: Axes, mask: NDArray[np.bool_], colour: Any = TRUTH_COLOUR) -> None:
    if mask.any() and not mask.all():
        axes.contour(mask, levels=[0.5], colors=[colour], linewidths=0.8)
