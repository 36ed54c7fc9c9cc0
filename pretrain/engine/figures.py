"""Pictures of a run: PNG files that are whole or absent, and the curves of its losses."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

from data_prep.common.files import atomic_path
from pretrain.engine.metrics import read_metrics
from pretrain.engine.progress import IMAGES_PER_SECOND, MFU


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all.

    Its texts hold names that users gave, in which a dollar sign begins no formula.
    """
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight")


def draw_losses(run: Path, names: Sequence[str]) -> None:
    """Each loss over the steps of a run as `figures/losses.png`.

    Where there are enough lines of metrics, a running mean over a tenth of them is drawn over each.
    """
    rows = [row for row in read_metrics(run) if all(name in row for name in names)]
    steps = np.array([row["step"] for row in rows])
    smoothed = len(rows) // 10
    figure = Figure(figsize=(4 * len(names), 3), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        values = np.array([row[name] for row in rows])
        if smoothed > 1:
            mean = np.convolve(values, np.ones(smoothed) / smoothed, mode="valid")
            axis.plot(steps, values, color="0.75", linewidth=1, label="loss")
            axis.plot(steps[smoothed - 1 :], mean, linewidth=2, label="running mean")
            axis.legend()
        else:
            axis.plot(steps, values, linewidth=2)
        axis.set(title=name, xlabel="step", ylabel="loss")
    save_figure(figure, run / "figures" / "losses.png")


def draw_rates(run: Path) -> None:
    """Images/s, and MFU where it is known, over the steps of a run as `figures/rates.png`."""
    rows = [row for row in read_metrics(run) if IMAGES_PER_SECOND in row]
    known = [row for row in rows if MFU in row]
    curves = [(IMAGES_PER_SECOND, "images/s", rows)]
    if known:
        curves.append((MFU, "MFU, share of the device's peak", known))
    figure = Figure(figsize=(4 * len(curves), 3), layout="constrained")
    for axis, (name, title, shown) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True
    ):
        axis.plot([row["step"] for row in shown], [row[name] for row in shown], linewidth=1)
        axis.set(title=title, xlabel="step", ylim=(0, None))
    save_figure(figure, run / "figures" / "rates.png")
