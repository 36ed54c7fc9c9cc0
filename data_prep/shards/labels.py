"""Which class each image has, as the user says."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from data_prep.common.errors import UserError
from data_prep.records import Reference
from data_prep.shards.named import find_named

MANY = 20
"""Up to so many classes nobody asks whether a label is rather a name."""
SHOWN = 12
"""Classes in the message about them."""


def relabel(references: Sequence[Reference], label: str) -> list[Reference]:
    """References with the classes that the option `label` names, in place of any other.

    A file that it says nothing about has no label. How many have which one is printed.

    Args:
        label: See `find_named`; "" changes nothing.

    Raises:
        UserError: No file has a label, or labels are as different as files: labels are stored
            in clear, so that names of patients must not be taken for classes.
    """
    if not label:
        return list(references)
    find = find_named("label", label)
    relabelled = [replace(each, label=find(each.path) or None) for each in references]
    counts = Counter(each.label for each in relabelled if each.label is not None)
    if references and not counts:
        raise UserError(f"label: {label!r} gives none of {len(references)} files a label")
    if len(counts) > MANY and len(counts) > counts.total() / 2:
        raise UserError(
            f"label: {label!r} gives {counts.total()} files {len(counts)} labels, as names of files"
            " or patients do; a label is a class that many images share"
        )
    shown = ", ".join(f"{name} {count}" for name, count in sorted(counts.items())[:SHOWN])
    more = f" and {len(counts) - SHOWN} more classes" if len(counts) > SHOWN else ""
    print(f"label: {shown}{more}; {len(references) - counts.total()} files without")
    return relabelled
