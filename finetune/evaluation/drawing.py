"""Pictures of an evaluation: Dice by number of clicks, and the best, median and worst cases."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from finetune.data.cases import LabelledCases, LabelledImage
from finetune.evaluation.labelled import encode_labelled, generator_of
from finetune.evaluation.protocols import Protocol
from finetune.evaluation.tables import Row, Summary, summarise
from finetune.evaluation.volume_pictures import draw_volume
from finetune.inference.pictures import outline, show
from finetune.inference.prompted import Answer
from finetune.inference.uncertainty import entropy
from finetune.inference.volume import PromptedVolume
from finetune.model.segmenter import Segmenter
from pretrain.engine.figures import save_figure


def draw_results(
    segmenter: Segmenter,
    cases: LabelledCases,
    rows: Sequence[Row],
    protocols: Sequence[Protocol],
    seed: int,
    folder: Path,
) -> None:
    """Write dice_by_clicks.png, best.png, median.png and worst.png into `folder`.

    Cases are ranked by Dice after the most clicks (without clicks, by the first protocol). Of
    volumes that were prompted as a whole there is also best_volume.png and so on.

    Args:
        rows: All rows that `evaluate` gave for these cases.
        seed: Seed of the protocols' randomness.
    """
    given = {row.protocol for row in rows}
    clicks = {name: number for name, number in clicks_of(protocols).items() if name in given}
    if clicks:
        draw_dice_by_clicks({"": summarise(rows)}, clicks, folder / "dice_by_clicks.png")
    record_of = {cases.shards.key(image.record): image.record for image in cases.images}
    name_ranked = list(clicks)[-1] if clicks else rows[0].protocol
    for name, row in shown_cases(row for row in rows if row.protocol == name_ranked).items():
        image, pixels, truth = largest_image(cases, record_of[row.case], row.target)
        held = tuple(cases.held(image.record))
        index = list(cases.targets).index(row.target)
        answers: dict[str, Answer] = {}
        prompted = encode_labelled(segmenter, cases, image, pixels)
        for protocol in protocols:
            # as it was judged, with all that was drawn for other targets
            whole = protocol.every_slice or not protocol.gives_prompts or image.depth is None
            asked = replace(image, targets=held) if whole else image
            rng = generator_of(seed, row.case if whole else f"{row.case}/{image.depth}")
            _, _, truths = cases.read(asked)
            found = protocol.answers(prompted, truths, cases.names(asked), rng)
            place = asked.targets.index(index)
            answers |= {key: members[place] for key, members in found.items()}
        title = f"{name}: {row.target}, Dice {row.dice:.3f} ({name_ranked})"
        if answers:
            draw_case(pixels, truth, answers, title, folder / f"{name}.png")
        if image.depth is not None:
            record, path = record_of[row.case], folder / f"{name}_volume.png"
            _draw_volume(segmenter, cases, record, row, protocols, seed, title, path)


def shown_cases(rows: Iterable[Row]) -> dict[str, Row]:
    """The worst, median and best row by Dice, of at least one."""
    ranked = sorted(rows, key=lambda row: row.dice)
    return {"worst": ranked[0], "median": ranked[len(ranked) // 2], "best": ranked[-1]}


def clicks_of(protocols: Sequence[Protocol]) -> dict[str, int]:
    """Number of clicks behind each row that counts clicks, fewest first."""
    clicks: dict[str, int] = {}
    for protocol in protocols:
        clicks |= protocol.clicks
    return dict(sorted(clicks.items(), key=lambda item: item[1]))


def draw_dice_by_clicks(
    runs: Mapping[str, Sequence[Summary]], clicks: Mapping[str, int], path: Path
) -> None:
    """One panel per target: mean Dice against clicks, with its 95 % interval.

    There is a line for each run, and for each way in which volumes were prompted.

    Args:
        runs: Summaries of each run, by the name shown in the legend.
        clicks: Number of clicks of each row to be shown.
    """
    targets = list(dict.fromkeys(row.target for rows in runs.values() for row in rows))
    columns = min(len(targets), 4)
    lines = -(-len(targets) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.2 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    legend: dict[str, Line2D] = {}
    for index, axes in enumerate(grid.flat):
        if index >= len(targets):
            axes.axis("off")
            continue
        for name, rows in runs.items():
            lines_of_run: dict[str, list[Summary]] = {}
            for row in rows:
                if row.target == targets[index] and row.protocol in clicks:
                    way = (name + re.sub(r"^\d+ clicks?", "", row.protocol)).strip()
                    lines_of_run.setdefault(way, []).append(row)
            for way, shown in lines_of_run.items():
                numbers = [clicks[row.protocol] for row in shown]
                means = [row.dice.mean for row in shown]
                (line,) = axes.plot(numbers, means, marker="o")
                legend.setdefault(way, line)
                low, high = [row.dice.low for row in shown], [row.dice.high for row in shown]
                axes.fill_between(numbers, low, high, color=line.get_color(), alpha=0.15)
        axes.set(title=targets[index], xlabel="clicks", xticks=sorted({*clicks.values()}))
    grid[0, 0].set(ylabel="Dice", ylim=(0, 1))
    if len(legend) > 1:
        names, handles = list(legend), list(legend.values())
        figure.legend(handles, names, loc="outside lower center", ncols=columns)
    save_figure(figure, path)


def draw_case(
    image: NDArray[Any],
    truth: NDArray[np.bool_],
    answers: Mapping[str, Answer],
    title: str,
    path: Path,
) -> None:
    """An image, the truth, and the model's answers to some prompts, up to six in a row.

    Args:
        image: (H, W) or (H, W, 3), uint8 or uint16.
        truth: (H, W); its outline is drawn on every answer.
        answers: By the title of the panel; positive clicks are green, negative ones red. Those
            with a probability have another panel, of its entropy from 0, black, to 1 bit.
    """
    height, width = truth.shape
    maps = {
        f"{name}: entropy": entropy(answer.probability)
        for name, answer in answers.items()
        if answer.probability is not None
    }
    panels = 2 + len(answers) + len(maps)
    columns = min(panels, 6)
    rows = -(-panels // columns)
    above = 0.3 + 0.2 * max((name.count("\n") for name in answers), default=0)  # titles of a row
    size = (2.4 * columns, (2.4 * height / width + above) * rows + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    first, second = next(grid), next(grid)
    show(first, image)
    first.set_title("image")
    show(second, image, truth)
    second.set_title("truth")
    for (name, answer), axes in zip(answers.items(), grid, strict=False):
        show(axes, image, answer.mask, answer.points, answer.labels, answer.box)
        outline(axes, truth)
        axes.set_title(name)
    for (name, bits), axes in zip(maps.items(), grid, strict=False):
        axes.imshow(bits, cmap="magma", vmin=0, vmax=1)
        outline(axes, truth)
        axes.set_title(name)
        axes.axis("off")
    for axes in grid:
        axes.axis("off")
    figure.suptitle(title)
    save_figure(figure, path)


def _draw_volume(
    segmenter: Segmenter,
    cases: LabelledCases,
    record: int,
    row: Row,
    protocols: Sequence[Protocol],
    seed: int,
    title: str,
    path: Path,
) -> None:
    """What protocols about volumes gave for one target, as `evaluate` asked; else nothing."""
    stored = cases.shards.record(record)
    assert stored.mask is not None
    truth = np.isin(stored.mask, cases.targets[row.target])
    volume = PromptedVolume(segmenter, len(stored.image), stored.image.__getitem__)
    masks: dict[str, NDArray[np.bool_]] = {}
    for protocol in protocols:
        rng = generator_of(seed, f"{row.case}/{row.target}")
        found = protocol.volume_answers(volume, truth[None], [row.target], rng)
        masks |= {name: answers[0].mask for name, answers in found.items()}
    if masks:
        draw_volume(stored.image, truth, masks, title, path)


def largest_image(
    cases: LabelledCases, record: int, target: str
) -> tuple[LabelledImage, NDArray[Any], NDArray[np.bool_]]:
    """The 2D record, or the slice in which the target is largest; its pixels and truth (H, W)."""
    index = list(cases.targets).index(target)
    found = []
    for image in cases.images:
        if image.record == record and index in image.targets:
            _, pixels, truths = cases.read(image)
            found.append((image, pixels, truths[image.targets.index(index)]))
    return max(found, key=lambda each: int(each[2].sum()))
