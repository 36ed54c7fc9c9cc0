"""CSV files that come with data sets."""

import csv
from collections.abc import Sequence
from pathlib import Path

from data_prep.common.errors import UserError


def read_table(path: Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows of a CSV file with a header, each a dict by column, without surrounding blanks.

    Files .tab and .tsv are separated by tabs.

    Args:
        columns: Names that must be there.

    Raises:
        UserError: The file cannot be read or lacks one of `columns`.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            if not first.strip():
                raise UserError(f"{path}: is empty, or begins with an empty line")
            delimiter = "\t" if path.suffix.lower() in (".tab", ".tsv") else ","
            if "," not in first and ";" in first:  # as spreadsheets write it in some countries
                delimiter = ";"
            reader = csv.DictReader(file, restval="", delimiter=delimiter)
            header = [name.strip() for name in reader.fieldnames or []]
            if missing := [name for name in columns if name not in header]:
                raise UserError(f"{path}: has no column {missing[0]!r}, only {', '.join(header)}")
            reader.fieldnames = header
            return [{name: (row[name] or "").strip() for name in header} for row in reader]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8; save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error})") from error
