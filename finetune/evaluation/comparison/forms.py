"""A table in several forms: Markdown, CSV, LaTeX and HTML."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import NamedTuple

from data_prep.common.results import markdown_table, table_cell
from finetune.evaluation import page
from finetune.evaluation.details import to_csv
from finetune.evaluation.statistics import Mean

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: f"{{{character}}}" for character in "[*"},
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
"""Characters that LaTeX takes for something else; [ and * only behind the end of a row."""


class Cell(NamedTuple):
    """What is read, and the values behind it, which a CSV file has."""

    text: str
    values: tuple[object, ...]


class Column(NamedTuple):
    """A column: its heading, and the names of its values in a CSV file."""

    title: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table with notes on how to read it."""

    name: str
    """Of its CSV file."""
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    """As many cells as columns, and in each as many values as the column has names."""
    notes: Sequence[str] = field(default_factory=tuple)


def words(text: str) -> Cell:
    """A cell of text."""
    return Cell(text, (text,))


def number(value: float, form: str = ".3g") -> Cell:
    """A cell of a number; one that is not known is `-`."""
    return Cell("-" if math.isnan(value) else format(value, form), (value,))


def interval(mean: Mean, text: str | None = None) -> Cell:
    """A cell of a mean with its interval, of three values.

    Args:
        text: How it is read, if not as always.
    """
    return Cell(str(mean) if text is None else text, (mean.mean, mean.low, mean.high))


def spread(title: str, name: str) -> Column:
    """The column of cells from `interval`."""
    return Column(title, (name, f"{name}_low", f"{name}_high"))


def markdown(table: Table) -> str:
    """The table in Markdown with its notes, without its title."""
    rows = [[table_cell(cell.text) for cell in row] for row in table.rows]
    header = [table_cell(column.title) for column in table.columns]
    lines = markdown_table(header, rows)
    return "\n".join([*lines, "", " ".join(table.notes)]).rstrip() + "\n"


def comma_separated(table: Table) -> str:
    """The values of the table; a value that is not known is an empty cell."""
    header = [name for column in table.columns for name in column.names]
    return to_csv(header, ([_known(v) for cell in row for v in cell.values] for row in table.rows))


def latex(table: Table) -> str:
    """A `longtable` with rules of booktabs; its notes stand before it as comments."""
    heading = " & ".join(_latex(column.title) for column in table.columns)
    lines = [f"% {note}" for note in table.notes]
    lines += [rf"\begin{{longtable}}{{{'l' * len(table.columns)}}}"]
    lines += [rf"\caption{{{_latex(table.title)}}}\\", r"\toprule", rf"{heading} \\", r"\midrule"]
    lines += [r"\endhead", r"\bottomrule", r"\endfoot"]
    lines += [" & ".join(_latex(cell.text) for cell in row) + r" \\" for row in table.rows]
    return "\n".join([*lines, r"\end{longtable}"]) + "\n"


def html(table: Table) -> list[str]:
    """A heading, the table and its notes."""
    rows = [[cell.text for cell in row] for row in table.rows]
    return [
        f"<h2>{escape(table.title)}</h2>",
        page.table([column.title for column in table.columns], rows),
        page.paragraph(" ".join(table.notes).replace("`", "'")),  # Markdown's marks of code
    ]


def _known(value: object) -> object:
    return "" if isinstance(value, float) and math.isnan(value) else value


def _latex(text: str) -> str:
    escaped = "".join(LATEX.get(character, character) for character in text)
    return re.sub(r"(?<!\w)-(?=[\d.])", "$-$", escaped)
