"""CSV files that come with data sets."""

import csv
from collections.abc import Sequence
from pathlib import Path

from data_prep.common.errors import UserError


def read_table(path: Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows of a CSV file, see `read_numbered`."""
    return [row for _, row in read_numbered(path, columns)]


def read_numbered(
    path: Path, columns: Sequence[str] = (), strict: bool = False
) -> list[tuple[int, dict[str, str]]]:
    """Rows of a CSV file with a header, each a dict by column, without surrounding blanks.

    With each comes the number of its (last) line. Files .tab and .tsv are separated by tabs, others
    by commas, unless the header has none of these but semicolons or tabs.

    Args:
        columns: Names that must be there.
        strict: Refuse what would be dropped: cells beyond the header, and columns of one name.

    Raises:
        UserError: The file is empty, is not UTF-8, cannot be read or lacks one of `columns`.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            if not first.strip():
                raise UserError(f"{path}: is empty, or begins with an empty line")
            if "\0" in first:  # UTF-16 without a mark
                raise UserError(f"{path}: is not UTF-8; save it as UTF-8")
            delimiter = "\t" if path.suffix.lower() in (".tab", ".tsv") else ","
            if delimiter not in first:  # spreadsheets write semicolons in some countries
                delimiter = next((each for each in ";\t" if each in first), delimiter)
            reader = csv.DictReader(file, restval="", delimiter=delimiter)
            header = [name.strip() for name in reader.fieldnames or []]
            if missing := [name for name in columns if name not in header]:
                raise UserError(f"{path}: has no column {missing[0]!r}, only {', '.join(header)}")
            if strict and (twice := [name for name in header if header.count(name) > 1]):
                raise UserError(f"{path}: has two columns {twice[0]!r}")
            reader.fieldnames = header
            rows = []
            for row in reader:
                if strict and any(row.get(None) or ()):
                    raise UserError(
                        f"{path}, line {reader.line_num}: has more cells than the header; a cell"
                        " with commas needs quotes"
                    )
                rows.append((reader.line_num, {name: row[name].strip() for name in header}))
            return rows
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8; save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error})") from error
