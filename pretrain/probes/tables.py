"""Rows of probes as a Markdown table, as CSV and as a picture."""

import csv
import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from data_prep.common.results import markdown_table
from pretrain.probes.judge import ENCODER, KNN, LINEAR, Row
from pretrain.probes.metrics import FEWEST_GROUPS, METRICS


def probes_markdown(rows: Sequence[Row], lines: Sequence[str]) -> str:
    """One table for each set, and how to read it.

    Args:
        lines: A line about each set, in the order of the rows' sets.
    """
    parts = ["# Probes"]
    for name, line in zip(dict.fromkeys(row.set for row in rows), lines, strict=True):
        mine = [row for row in rows if row.set == name]
        few = "" if mine[0].groups >= FEWEST_GROUPS else f": too few groups ({mine[0].groups})"
        header = ["probe", "features", *METRICS, "encoder is ahead (accuracy)", "(AUROC)"]
        table = markdown_table(header, [_cells(row) for row in mine])
        parts += [f"## {name}", line + "."]
        parts += [f"{mine[0].images} images of {mine[0].groups} groups were scored."]
        if few:
            parts[-1] += f" There are no intervals{few}; {FEWEST_GROUPS} or more are needed."
        parts += ["\n".join(table)]
    parts += [
        "In brackets: 95 % bootstrap intervals over groups. Balanced accuracy is the mean of the"
        " classes' recalls, AUROC the mean over classes of that against the others. `encoder is"
        " ahead` is its difference from the features of the row on the same resamples: where the"
        " interval holds 0, there is no clear difference."
    ]
    return "\n\n".join(parts) + "\n"


def probes_csv(rows: Sequence[Row]) -> str:
    """A line for each row and metric."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    head = ["set", "probe", "features", "images", "groups", "metric", "value", "low", "high"]
    writer.writerow([*head, "ahead", "ahead_low", "ahead_high"])
    for row in rows:
        for metric, found in row.metrics.items():
            values = [found.value, found.low, found.high]
            if lead := row.ahead.get(metric):
                values += [lead.value, lead.low, lead.high]
            known = ["" if math.isnan(value) else value for value in values]
            cells = [row.set, row.probe, row.features, row.images, row.groups, metric, *known]
            writer.writerow(cells + [""] * (len(head) + 3 - len(cells)))
    return stream.getvalue()


def draw_probes(rows: Sequence[Row], metric: str = "balanced accuracy") -> Figure:
    """One panel for each set and classifier: a bar for each kind of features, with its interval."""
    sets = list(dict.fromkeys(row.set for row in rows))
    names = list(dict.fromkeys(row.features for row in rows))
    figure = Figure(figsize=(7, 0.8 + 2.2 * len(sets)), layout="constrained")
    panels = figure.subplots(len(sets), 2, squeeze=False, sharex=True)
    for line, name in zip(panels, sets, strict=True):
        for axes, probe in zip(line, (KNN, LINEAR), strict=True):
            shown = {
                r.features: r.metrics[metric] for r in rows if (r.set, r.probe) == (name, probe)
            }
            places = np.arange(len(names))[::-1]
            for place, each in zip(places, names, strict=True):
                found = shown[each]
                colour = "C0" if each == ENCODER else "0.7"
                axes.barh(place, found.value, color=colour)
                if not math.isnan(found.low):
                    ends = [[found.value - found.low], [found.high - found.value]]
                    axes.errorbar(found.value, place, xerr=np.maximum(ends, 0), color="black")
            axes.set(yticks=places, yticklabels=names, title=f"{name}, {probe}")
    for axes in panels[-1]:
        axes.set(xlabel=metric, xlim=(0, 1))
    return figure


def _cells(row: Row) -> list[object]:
    ahead = [row.ahead.get(metric, "") for metric in ("accuracy", "AUROC")]
    return [row.probe, row.features, *row.metrics.values(), *ahead]
