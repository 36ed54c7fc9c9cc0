"""Which patient, lesion or case a file belongs to, so that no split cuts one in two."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from data_prep.common.errors import UserError
from data_prep.layouts._tables import read_table
from data_prep.records import Reference

ISIC_IMAGES = ("image_id", "bcn_filename", "isic_id")
ISIC_GROUPS = ("patient_id", "lesion_id")
HAM_TABLE = "HAM10000_metadata"
"""Published with and without a suffix."""
ISIC_TABLES = (HAM_TABLE, "bcn_20k_train", "metadata")
EXAMPLES = 3


def regroup(references: Sequence[Reference], group: str) -> list[Reference]:
    """References with the groups that the option `group` names.

    Args:
        group: A regular expression, looked for in a file's name without suffix and else in its
            path, whose first group (or else whole match) is the patient; or a CSV file with columns
            `file` (path below the input, name, or name without suffix) and `group`. "" changes
            nothing.

    Raises:
        UserError: It does not say which group some file belongs to.
    """
    if not group:
        return list(references)
    find = _from_table(Path(group)) if group.lower().endswith(".csv") else _from_pattern(group)
    regrouped = []
    for reference in references:
        found = find(reference.path)
        if not found:
            raise UserError(f"group: {group!r} does not say to whom {reference.path} belongs")
        regrouped.append(replace(reference, group=found))
    return regrouped


def _from_pattern(pattern: str) -> Callable[[str], str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"group: {pattern!r} is not a regular expression ({error})") from None

    def find(path: str) -> str:
        match = expression.search(_stem(path)) or expression.search(path)
        if match is None:
            return ""
        return (match[1] if expression.groups else match[0]) or ""

    return find


def _from_table(path: Path) -> Callable[[str], str]:
    rows = read_table(path, ("file", "group"))
    groups = {row["file"]: row["group"] for row in rows}

    def find(name: str) -> str:
        candidates = (name, PurePosixPath(name).name, _stem(name))
        return next((groups[each] for each in candidates if each in groups), "")

    return find


def _stem(path: str) -> str:
    """A file's name without its suffix; `.nii.gz` is one."""
    name = PurePosixPath(path).name
    return name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else PurePosixPath(name).stem


def isic_rows(
    root: Path, files: Iterable[str], any_name: bool = False
) -> dict[str, dict[str, str]]:
    """Row of each image, by its name without suffix, in the ISIC archive's tables among `files`.

    Args:
        any_name: Read tables of other names than the published ones too.
    """
    rows: dict[str, dict[str, str]] = {}
    for name in files:
        path = PurePosixPath(name)
        is_table = path.suffix.lower() in (".csv", ".tab") or path.name == HAM_TABLE
        if is_table and (any_name or path.name.startswith(ISIC_TABLES)):
            for row in read_table(root / name):
                if image := first_value(row, ISIC_IMAGES):
                    rows.setdefault(PurePosixPath(image).stem, {}).update(row)
    return rows


def isic_group(row: Mapping[str, str] | None, stem: str) -> str:
    """The patient of a row, else the lesion, which may be in several images, else `stem`."""
    return first_value(row or {}, ISIC_GROUPS) or stem


def first_value(row: Mapping[str, str], columns: Sequence[str]) -> str | None:
    """The first of some columns that is not empty."""
    return next((row[name] for name in columns if row.get(name)), None)


def alike_across_splits(references: Iterable[Reference]) -> list[str]:
    """Examples of cases in several splits whose names begin alike, as those of one patient do.

    `patient001_frame01` and `patient001_frame12` do; `case_001` and `case_002` do not, since what
    they share names nobody.
    """
    members: dict[str, dict[str, str]] = defaultdict(dict)  # stem -> case by split
    for reference in references:
        name = _stem(reference.group)
        beginning = re.sub(r"[_\-. ][A-Za-z]*\d*$", "", name)
        if beginning != name and re.search(r"\d", beginning):
            members[beginning].setdefault(reference.split, name)
    return [
        " and ".join(f"{case} ({split})" for split, case in sorted(cases.items()))
        for _, cases in sorted(members.items())
        if len(cases) > 1
    ]
