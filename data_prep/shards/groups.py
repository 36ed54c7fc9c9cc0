"""To whom each case belongs, as the user says, so that no split cuts a patient in two."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from data_prep.common.errors import UserError
from data_prep.layouts._tables import read_table
from data_prep.records import (
    NotAnImage,
    Reference,
    Sample,
    Unreadable,
    group_hash,
    patient_of,
)

HELD_OUT = "shows a held-out patient"
"""Why a record was left out."""
EXAMPLES = 3
"""Pairs of names in a warning."""


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
    find = _from_table(Path(group)) if is_table(group) else _from_pattern(group)
    regrouped: list[Reference] = []
    unnamed: list[str] = []
    for reference in references:
        if found := find(reference.path):
            regrouped.append(replace(reference, group=found))
        else:
            unnamed.append(reference.path)
    if unnamed:
        more = f" and {len(unnamed) - 1} more" if len(unnamed) > 1 else ""
        raise UserError(f"group: {group!r} does not say to whom {unnamed[0]}{more} belongs")
    return regrouped


@dataclass(frozen=True)
class WithoutHeldOut:
    """Reads references as `read`, without the records of some patients.

    For collections whose files name the patient, which is known when they are read. (Picklable.)
    """

    read: Callable[[Reference], Iterable[Sample | NotAnImage | Unreadable]]
    groups: frozenset[str]
    """Hashes of the patients."""
    salt: str
    """Key of these hashes."""

    def __call__(self, reference: Reference) -> Iterator[Sample | NotAnImage | Unreadable]:
        """The samples of a reference; in place of one that is left out, the reason.

        Raises:
            NotAnImage: All of it is left out, as is known before it is read.
        """
        if group_hash(reference.group, self.salt) in self.groups:
            raise NotAnImage(HELD_OUT)
        for sample in self.read(reference):
            if isinstance(sample, Sample) and self._shows_one(sample, reference):
                yield NotAnImage(HELD_OUT)
            else:
                yield sample

    def _shows_one(self, sample: Sample, reference: Reference) -> bool:
        return group_hash(patient_of(sample, reference), self.salt) in self.groups


@dataclass(frozen=True)
class AsGrouped:
    """Reads references as `read`, whose own group holds whatever their files say. (Picklable.)"""

    read: Callable[[Reference], Iterable[Sample | NotAnImage | Unreadable]]

    def __call__(self, reference: Reference) -> Iterator[Sample | NotAnImage | Unreadable]:
        """The samples of a reference."""
        for sample in self.read(reference):
            yield replace(sample, group="") if isinstance(sample, Sample) else sample


def is_table(group: str) -> bool:
    """Whether the option `group` names a table, and is not a pattern."""
    return group.lower().endswith((".csv", ".tsv", ".tab"))


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
    groups: dict[str, str] = {}
    for row in read_table(path, ("file", "group")):
        name = row["file"].replace("\\", "/").removeprefix("./")
        if groups.setdefault(name, row["group"]) != row["group"]:
            raise UserError(
                f"{path}: gives {name} two groups, {groups[name]!r} and {row['group']!r}"
            )

    users: dict[str, str] = {}  # file by the name in the table that it was found by

    def find(name: str) -> str:
        short = (PurePosixPath(name).name, _stem(name))
        rows = [name] if name in groups else [each for each in short if each in groups]
        for row in rows:
            if users.setdefault(row, name) != name:
                raise UserError(
                    f"{path}: {row} may be {users[row]} or {name}; name them by their paths"
                )
        named = [groups[row] for row in rows]
        if len(set(named)) > 1:
            raise UserError(f"{path}: gives {name} two groups, {named[0]!r} and {named[1]!r}")
        return named[0] if named else ""

    return find


def _stem(path: str) -> str:
    """A file's name without its suffix; `.nii.gz` is one."""
    name = PurePosixPath(path).name
    return name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else PurePosixPath(name).stem


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
