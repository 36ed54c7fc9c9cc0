"""Curves of Dice against the number of labelled cases."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from finetune.evaluation.protocols import FILLED_BOX, NO_PROMPT
from finetune.evaluation.tables import ABSENT
from finetune.few_shot.scores import Point
from pretrain.engine.figures import save_figure


def draw_curves(points: Mapping[str, Sequence[Point]], arms: Sequence[str], path: Path) -> None:
    """One panel per protocol: a line and the band of its 95 % interval for each arm.

    Arms that take no prompts are shown beside the others in their panels, too, as broken lines.

    Args:
        points: Those of each protocol.
        arms: All arms, in the order of the legend.
    """
    left_out = [name for name in points if name.endswith(ABSENT) or name.startswith(FILLED_BOX)]
    panels = [name for name in points if name not in left_out] or list(points)
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 3.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    lines = {}
    for name, axes in zip(panels, grid.flat, strict=False):
        ticks: dict[int, str] = {}
        for index, arm in enumerate(arms):
            curve = [point for point in points[name] if point.arm == arm]
            label, style = arm, "-"
            if not curve:
                curve = [point for point in points.get(NO_PROMPT, ()) if point.arm == arm]
                label, style = f"{arm} ({NO_PROMPT})", "--"
            if not curve:
                continue
            curve = sorted(curve, key=lambda point: point.groups)
            numbers, colour = [point.groups for point in curve], f"C{index}"
            means = [point.dice.mean for point in curve]
            (lines[label],) = axes.plot(numbers, means, style, marker="o", color=colour)
            low, high = [p.dice.low for p in curve], [p.dice.high for p in curve]
            axes.fill_between(numbers, low, high, color=colour, alpha=0.12, linewidth=0)
            ticks |= {point.groups: f"{point.groups}" for point in curve if point.cases}
            ticks |= {p.groups: f"all ({p.groups})" for p in curve if p.cases is None}
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(list(ticks), labels=list(ticks.values()))
        axes.set(title=name, xlabel="labelled cases", ylabel="Dice", ylim=(0, 1))
        axes.grid(alpha=0.3)
    figure.legend(
        lines.values(), lines.keys(), loc="outside lower center", ncols=min(len(lines), 2 * columns)
    )
    save_figure(figure, path)
