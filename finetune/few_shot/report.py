"""The table of a study, as Markdown and CSV, and its figure."""

import csv
import fcntl
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from data_prep.common.files import lock_file, write_text
from data_prep.common.results import markdown_table, table_cell
from finetune.evaluation.statistics import Mean, notes_on_groups
from finetune.evaluation.tables import ABSENT, ALL_TARGETS
from finetune.few_shot.config import FewShotConfig
from finetune.few_shot.drawing import draw_curves
from finetune.few_shot.scores import Point, points_of
from finetune.few_shot.study import Run, cases_text

NAME = "few_shot"
LOCK_SECONDS = 60.0
FEW_DRAWS = 3
"""Below this number of draws a note says that intervals are too narrow."""


def write_report(config: FewShotConfig, runs: Sequence[Run]) -> None:
    """Write few_shot.md, few_shot.csv and few_shot.png of the runs that are done, and print the
    first.

    Tasks that end together write one after the other, so the last one sees all that is done.
    """
    with (config.output / ".report.lock").open("ab") as file:
        with suppress(OSError):  # a file system without locks
            lock_file(file, LOCK_SECONDS, fcntl.lockf)
        _write(config.output, runs, config.baseline or runs[0].arm.name)


def _write(output: Path, runs: Sequence[Run], baseline: str) -> None:
    points = points_of(runs, baseline)
    text = markdown(points, runs, baseline)
    write_text(output / f"{NAME}.md", text)
    if points:
        write_text(output / f"{NAME}.csv", as_csv(points, baseline))
        arms = list(dict.fromkeys(run.arm.name for run in runs))
        draw_curves(headline(points), arms, output / f"{NAME}.png")
    print(f"\n{text}\nwritten: {output / NAME}.md, .csv and .png", flush=True)


def headline(points: Sequence[Point]) -> dict[str, list[Point]]:
    """By protocol, the points for all targets together, or for the one that there is."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.protocol, []).append(point)
    for protocol, members in found.items():
        if any(point.target == ALL_TARGETS for point in members):
            found[protocol] = [point for point in members if point.target == ALL_TARGETS]
    return found


def markdown(points: Sequence[Point], runs: Sequence[Run], baseline: str) -> str:
    """Tables with one row per arm and one column per number of cases: for each protocol the mean
    Dice, and then the difference to the baseline."""
    lines = ["# Dice by number of labelled cases"]
    draws = max((run.draw for run in runs), default=0) + 1
    for protocol, members in headline(points).items():
        lines += ["", f"## {protocol}", "", *_table(members, runs, draws, differences=False)]
        if any(point.difference is not None for point in members):
            lines += ["", f"Difference to {table_cell(baseline)}:", ""]
            lines += _table(members, runs, draws, differences=True)
    lines += ["", " ".join(_notes(points, draws, baseline))]
    if missing := list(_missing(runs)):
        lines += ["", "Not done yet:", "", *(f"- {line}" for line in missing)]
    return "\n".join(lines) + "\n"


def as_csv(points: Sequence[Point], baseline: str) -> str:
    """One line per point; a cell is empty where there is no interval, or nothing to compare."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    plain = ["protocol", "target", "arm", "cases", "groups", "draws", "test_groups"]
    means = ["dice", "dice_low", "dice_high", "lowest_draw", "highest_draw"]
    means += ["difference", "difference_low", "difference_high", "baseline"]
    means += ["shared_draws"]
    writer.writerow([*plain, *means])
    for point in points:
        row: list[object] = [
            point.protocol,
            point.target,
            point.arm,
            point.cases or "all",
            point.groups,
        ]
        row += [point.draws, point.dice.groups, *_ends(point.dice), point.lowest, point.highest]
        row += [*_ends(point.difference)]
        row += ["", ""] if point.difference is None else [baseline, point.shared_draws]
        writer.writerow(row)
    return stream.getvalue()


def _table(
    points: Sequence[Point], runs: Sequence[Run], draws: int, differences: bool
) -> list[str]:
    numbers = list(dict.fromkeys(run.cases for run in runs))
    found = {(point.arm, point.cases): point for point in points}
    header = ["arm", *(_column(number, points) for number in numbers)]
    rows = []
    for arm in dict.fromkeys(run.arm.name for run in runs):
        shown = [found.get((arm, number)) for number in numbers]
        if not any(shown) or (differences and not any(p and p.difference for p in shown)):
            continue
        rows.append([table_cell(arm), *(_cell(point, draws, differences) for point in shown)])
    return markdown_table(header, rows)


def _column(number: int | None, points: Sequence[Point]) -> str:
    counts = sorted({point.groups for point in points if point.cases is None})
    if number is None and counts:
        return f"all cases ({', '.join(map(str, counts))})"
    return cases_text(number)


def _cell(point: Point | None, draws: int, differences: bool) -> str:
    mean = None if point is None else point.difference if differences else point.dice
    if point is None or mean is None:
        return "-"
    text = str(mean)
    if differences:
        text = f"{mean.mean:+.3f}"
        if not math.isnan(mean.low):
            text += f" ({mean.low:+.3f} to {mean.high:+.3f})"
            if mean.low > 0 or mean.high < 0:
                text = f"**{text}**"
    done = point.shared_draws if differences else point.draws
    return text if done == draws else f"{text}, {done} of {draws} draws"


def _notes(points: Sequence[Point], draws: int, baseline: str) -> Iterator[str]:
    if not points:
        yield "No run is done."
        return
    yield (
        "Mean over draws of the training cases and over test cases, with its 95 % interval"
        " (Student's t; it allows for other draws and other test cases, and cases of one group,"
        " such as a patient, do not count as independent)."
    )
    if any(point.difference is not None for point in points):
        yield "Differences are of the same draws and test cases; bold: the interval excludes 0."
    if any(point.cases is None for point in points):
        yield "Draws of all cases differ by their seed alone."
    if unpaired := dict.fromkeys(point.arm for point in points if point.other_cases):
        yield (
            f"Not compared, since evaluated on other test cases or targets than {baseline}:"
            f" {', '.join(unpaired)}."
        )
    compared = [point.shared_draws for point in points if point.difference is not None]
    if min([*compared, *(point.draws for point in points)]) == 1:
        yield "Of a single draw, the interval says nothing about other draws."
    elif draws < FEW_DRAWS:
        yield f"Fewer than {FEW_DRAWS} draws: the intervals are too narrow."
    if any(point.protocol.endswith(ABSENT) for point in points):
        yield "`absent`: the share of cases without the target that were answered by an empty mask."
    yield from notes_on_groups(point.dice for point in points)


def _missing(runs: Sequence[Run]) -> Iterator[str]:
    missing: dict[tuple[str, int | None], list[str]] = {}
    for run in runs:
        if not run.is_done:
            missing.setdefault((run.arm.name, run.cases), []).append(str(run.draw))
    for (arm, cases), draws in missing.items():
        plural = "s" if len(draws) > 1 else ""
        yield f"{arm}, {cases_text(cases)}: draw{plural} {', '.join(draws)}"


def _ends(mean: Mean | None) -> list[float | str]:
    if mean is None:
        return ["", "", ""]
    return ["" if math.isnan(value) else value for value in (mean.mean, mean.low, mean.high)]
