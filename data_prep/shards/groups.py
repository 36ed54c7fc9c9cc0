"""To whom each case belongs, as the user says, so that no split cuts a patient in two."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from data_prep.common.errors import UserError
from data_prep.records import (
    NotAnImage,
    Reference,
    Sample,
    Unreadable,
    group_hash,
    patient_of,
)
from data_prep.shards.named import find_named, stem_of

HELD_OUT = "shows a held-out patient"
"""Why a record was left out."""
EXAMPLES = 3
"""Pairs of names in a warning."""


def regroup(references: Sequence[Reference], group: str) -> list[Reference]:
    """References with the groups that the option `group` names.

    Args:
        group: See `find_named`; "" changes nothing.

    Raises:
        UserError: It does not say which group some file belongs to.
    """
    if not group:
        return list(references)
    find = find_named("group", group)
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


def alike_across_splits(references: Iterable[Reference]) -> list[str]:
    """Examples of cases in several splits whose names begin alike, as those of one patient do.

    `patient001_frame01` and `patient001_frame12` do; `case_001` and `case_002` do not, since what
    they share names nobody.
    """
    members: dict[str, dict[str, str]] = defaultdict(dict)  # stem -> case by split
    for reference in references:
        name = stem_of(reference.group)
        beginning = re.sub(r"[_\-. ][A-Za-z]*\d*$", "", name)
        if beginning != name and re.search(r"\d", beginning):
            members[beginning].setdefault(reference.split, name)
    return [
        " and ".join(f"{case} ({split})" for split, case in sorted(cases.items()))
        for _, cases in sorted(members.items())
        if len(cases) > 1
    ]
