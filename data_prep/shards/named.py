"""What file names, or a table of them, say about files: an option that is a pattern or a table."""

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from data_prep.common.errors import UserError
from data_prep.layouts._tables import read_table


def is_table(value: str) -> bool:
    """Whether the value of such an option names a table, and is not a pattern."""
    return value.lower().endswith((".csv", ".tsv", ".tab"))


def find_named(option: str, value: str) -> Callable[[str], str]:
    """A function that gives what a path below the input is said to be; "" if nothing is said.

    Args:
        option: Name of the option, which is also the table's column.
        value: A regular expression, looked for in a file's name without suffix and else in its
            path, whose first group (or else whole match) is meant; or a CSV file with columns
            `file` (path below the input, name, or name without suffix) and `option`.

    Raises:
        UserError: It is neither, or the table contradicts itself. The function too raises it, for
            a file of which the table is not certain.
    """
    return _from_table(option, Path(value)) if is_table(value) else _from_pattern(option, value)


def stem_of(path: str) -> str:
    """A file's name without its suffix; `.nii.gz` is one."""
    name = PurePosixPath(path).name
    return name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else PurePosixPath(name).stem


def _from_pattern(option: str, pattern: str) -> Callable[[str], str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{option}: {pattern!r} is not a regular expression ({error})") from None

    def find(path: str) -> str:
        match = expression.search(stem_of(path)) or expression.search(path)
        if match is None:
            return ""
        return (match[1] if expression.groups else match[0]) or ""

    return find


def _from_table(option: str, path: Path) -> Callable[[str], str]:
    values: dict[str, str] = {}
    for row in read_table(path, ("file", option)):
        name = row["file"].replace("\\", "/").removeprefix("./")
        if values.setdefault(name, row[option]) != row[option]:
            raise UserError(
                f"{path}: gives {name} two {option}s, {values[name]!r} and {row[option]!r}"
            )

    users: dict[str, str] = {}  # file by the name in the table that it was found by

    def find(name: str) -> str:
        short = (PurePosixPath(name).name, stem_of(name))
        rows = [name] if name in values else [each for each in short if each in values]
        for row in rows:
            if users.setdefault(row, name) != name:
                raise UserError(
                    f"{path}: {row} may be {users[row]} or {name}; name them by their paths"
                )
        named = [values[row] for row in rows]
        if len(set(named)) > 1:
            raise UserError(f"{path}: gives {name} two {option}s, {named[0]!r} and {named[1]!r}")
        return named[0] if named else ""

    return find
