"""Cases side by side: the best ones, the worst ones, and those in which runs differ most."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.evaluation.comparison.paired import default_protocol
from finetune.evaluation.comparison.results import Evaluated
from finetune.evaluation.drawing import draw_case
from finetune.evaluation.thumbnails import Thumbnail
from finetune.inference.prompted import Answer

Key = tuple[str, str]
"""Case and target."""
TITLE = 22
"""Letters that fit above a picture."""


class Choice(NamedTuple):
    """One target of a case, and how the runs did on it."""

    kind: str
    """best, worst or differing."""
    case: str
    target: str
    dice: dict[str, float]
    """By run."""


def choose_cases(
    runs: Mapping[str, Evaluated], protocols: Mapping[str, str], count: int
) -> list[Choice]:
    """Targets of cases with the highest mean Dice over runs, the lowest, and the widest range.

    Args:
        protocols: The protocol that stands for each run.
        count: How many of each kind, at most; none is chosen twice.
    """
    dice: dict[Key, dict[str, float]] = {}
    for name, run in runs.items():
        for row in run.rows:
            if row.protocol == protocols[name]:
                dice.setdefault((row.case, row.target), {})[name] = row.dice
    mean = {key: float(np.mean(list(found.values()))) for key, found in dice.items()}
    wide = {key: max(found.values()) - min(found.values()) for key, found in dice.items()}
    orders = {
        "best": sorted(dice, key=lambda key: -mean[key]),
        "worst": sorted(dice, key=lambda key: mean[key]),
        "differing": sorted(dice, key=lambda key: -wide[key]),
    }
    chosen: dict[Key, str] = {}
    for kind, keys in orders.items():
        left = [key for key in keys if key not in chosen]
        chosen |= dict.fromkeys(left[:count], kind)
    return [Choice(kind, *key, dice[key]) for key, kind in chosen.items()]


def draw_cases(
    runs: Mapping[str, Evaluated], reference: str, count: int, folder: Path
) -> dict[Path, str]:
    """Draw cases from the small pictures that evaluations kept, as `best-1.png` and so on.

    Each run is shown under the reference where it has it, otherwise under its first protocol. A run
    that kept no pictures is left out.

    Returns:
        Caption of each file.
    """
    protocols = {
        name: default_protocol(dict.fromkeys(row.protocol for row in run.rows), reference)
        for name, run in runs.items()
    }
    drawn: dict[Path, str] = {}
    numbers: dict[str, int] = {}
    for kind, case, target, dice in choose_cases(runs, protocols, count):
        kept: dict[str, Thumbnail] = {
            name: run.thumbnails.read(case, target)
            for name, run in runs.items()
            if run.thumbnails is not None and (case, target) in run.thumbnails
        }
        if not kept:
            continue
        first = next(iter(kept.values()))
        answers = {
            title_of(f"{name}: {dice[name]:.3f}", protocols[name]): Answer(
                _fitted(mask, first.truth)
            )
            for name, picture in kept.items()
            if (mask := picture.masks.get(protocols[name])) is not None
        }
        numbers[kind] = numbers.get(kind, 0) + 1
        path = folder / f"{kind}-{numbers[kind]}.png"
        draw_case(first.image, first.truth, answers, f"{target}, case {case[:8]}", path)
        spread = f"Dice {min(dice.values()):.3f} to {max(dice.values()):.3f}"
        drawn[path] = f"{kind} {numbers[kind]}: {target} of case {case}, {spread}."
    return drawn


def title_of(*lines: str) -> str:
    """Lines of a picture's title, broken where they are wider than it."""
    return "\n".join(fill(line, TITLE) for line in lines)


def _fitted(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask at the size of another picture, where an evaluation kept larger ones."""
    if mask.shape == truth.shape:
        return mask
    return np.asarray(Image.fromarray(mask).resize(truth.shape[::-1], Image.Resampling.NEAREST))
