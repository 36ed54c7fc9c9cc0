"""Result folders of `evaluate`, read back."""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from data_prep.common.errors import UserError
from data_prep.common.messages import one_line
from finetune.evaluation.details import CLICKS, MODEL, PICTURES, TIMES, ClickDice, Seconds
from finetune.evaluation.tables import HD95_NOTES, Row
from finetune.evaluation.thumbnails import Thumbnails

TEXTS = ("case", "target", "protocol", "unit", "group", "hd95_definition")
"""Columns that are not numbers."""

Line = TypeVar("Line")
Detail = TypeVar("Detail", ClickDice, Seconds)


@dataclass(frozen=True)
class Evaluated:
    """An evaluation; what earlier versions did not write is empty."""

    rows: list[Row]
    clicks: list[ClickDice] = field(default_factory=list)
    seconds: list[Seconds] = field(default_factory=list)
    model: Mapping[str, Any] = field(default_factory=dict)
    """As `write_model` wrote it."""
    tolerance: float | None = None
    """That of the NSD."""
    thumbnails: Thumbnails | None = None


def read_evaluation(folder: Path) -> Evaluated:
    """What an evaluation wrote.

    Raises:
        UserError: There is no `results.csv`, or a file is not what `evaluate` writes.
    """
    rows = read_results(folder / "results.csv")
    pictures = folder / PICTURES
    return Evaluated(
        rows,
        _read_details(folder / CLICKS, ClickDice, rows),
        _read_details(folder / TIMES, Seconds, rows),
        _read_mapping(folder / MODEL, ("parameters", "trained_parameters", "threads")),
        _read_mapping(folder / "config.yaml", ("tolerance",)).get("tolerance"),
        Thumbnails(pictures) if pictures.exists() else None,
    )


def read_results(path: Path) -> list[Row]:
    """The rows of a `results.csv`, as `evaluate` wrote them.

    In a file of an earlier version, which has no column `group`, each case is its own group.

    Raises:
        UserError: The file is not there, is not a results.csv, has no rows, or one of them twice.
    """
    rows = _read_table(path, Row)
    if not rows:
        raise UserError(f"{path}: holds no results; run evaluate again")
    known: set[tuple[str, str, str]] = set()
    for row in rows:
        if (key := (row.case, row.target, row.protocol)) in known:
            raise UserError(
                f"{path}: {row.protocol!r} of {row.target} of case {row.case} is there twice"
            )
        known.add(key)
    return rows


def _read_details(path: Path, kind: type[Detail], rows: list[Row]) -> list[Detail]:
    """A table beside `results.csv`, which earlier versions did not write."""
    lines = _read_table(path, kind) if path.exists() else []
    known = {(row.case, row.target) for row in rows}
    for line in lines:
        if (line.case, line.target) not in known:
            raise UserError(
                f"{path}: {line.target} of case {line.case} is not in results.csv; evaluate again"
            )
    return lines


def _read_table(path: Path, kind: type[Line]) -> list[Line]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                kind(**{name: _value(name, text) for name, text in line.items()})
                for line in csv.DictReader(file)
            ]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); run evaluate first") from None
    except (TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: is not a {path.name} of evaluate ({error})") from None


def _value(name: str, text: str | None) -> Any:
    if text is None:
        raise ValueError(f"a line ends before its {name}")
    if name == "hd95_definition" and text not in HD95_NOTES:
        raise ValueError(f"hd95_definition is {text!r}")
    if name in TEXTS:
        return text
    value = int(text) if name == "clicks" else float(text)
    if name == "dice" and not math.isfinite(value):
        raise ValueError(f"dice is {text}")
    return value


def _read_mapping(path: Path, numbers: tuple[str, ...]) -> dict[str, Any]:
    """A JSON or YAML file, which may be missing.

    Args:
        numbers: What must be a number, if it is there.
    """
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: is not a mapping")
    for name in numbers:
        if not isinstance(values.get(name, 0), int | float):
            raise UserError(f"{path}: {name} is {values[name]!r}, not a number")
    return values
