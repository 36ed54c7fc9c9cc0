"""Result folders of `evaluate`, read back."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from data_prep.common.errors import UserError
from data_prep.common.messages import one_line
from finetune.evaluation.details import CLICKS, MODEL, PICTURES, TIMES, ClickDice, Seconds
from finetune.evaluation.tables import Row
from finetune.evaluation.thumbnails import Thumbnails

TEXTS = ("case", "target", "protocol", "unit", "group", "hd95_definition")
"""Columns that are not numbers."""

Line = TypeVar("Line")


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
    clicks, times, pictures = (folder / name for name in (CLICKS, TIMES, PICTURES))
    return Evaluated(
        rows,
        _read_table(clicks, ClickDice) if clicks.exists() else [],
        _read_table(times, Seconds) if times.exists() else [],
        _read_mapping(folder / MODEL),
        _read_mapping(folder / "config.yaml").get("tolerance"),
        Thumbnails(pictures) if pictures.exists() else None,
    )


def read_results(path: Path) -> list[Row]:
    """The rows of a `results.csv`, as `evaluate` wrote them.

    In a file of an earlier version, which has no column `group`, each case is its own group.

    Raises:
        UserError: The file is not there, is not a results.csv, or has no rows.
    """
    rows = _read_table(path, Row)
    if not rows:
        raise UserError(f"{path}: holds no results; run evaluate again")
    return rows


def _read_table(path: Path, kind: type[Line]) -> list[Line]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                kind(**{name: _value(name, text) for name, text in line.items()})
                for line in csv.DictReader(file)
            ]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); run evaluate first") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: is not a {path.name} of evaluate ({error})") from None


def _value(name: str, text: str) -> Any:
    if name in TEXTS:
        return text
    return int(text) if name == "clicks" else float(text)


def _read_mapping(path: Path) -> dict[str, Any]:
    """A JSON or YAML file, which may be missing."""
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: is not a mapping")
    return values
