"""Targets as the labels of an nnU-Net data set, whose values must be 1, 2, 3 and so on.

Values of the shard set that lie in the same targets are one label; values of no target are
background. Targets that are a label each are trained by a softmax. Where some lie in others, as a
tumour in an organ, they are nnU-Net's regions, each with a sigmoid of its own. Where two overlap
and neither lies in the other, regions cannot be written as one label map: the labels are trained
by a softmax, and a target is the union of its labels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BACKGROUND = "background"
SPECIAL = (BACKGROUND, "ignore")
"""Names that mean something to nnU-Net."""


class Encoding:
    """Labels of an nnU-Net data set.

    Args:
        targets: Values of each target in the shard set.

    Attributes:
        values: Labels of each target in the masks that nnU-Net writes.
        entries: What its dataset.json says about labels.
    """

    def __init__(self, targets: Mapping[str, Sequence[int]]) -> None:
        members: dict[int, tuple[str, ...]] = {}
        for value in sorted({value for values in targets.values() for value in values} - {0}):
            members[value] = tuple(name for name, values in targets.items() if value in values)
        kinds = list(dict.fromkeys(members.values()))
        self._table = {value: kinds.index(names) + 1 for value, names in members.items()}
        self.values = {
            name: [label for label, names in enumerate(kinds, 1) if name in names]
            for name in targets
        }
        sets = {name: frozenset(labels) for name, labels in self.values.items()}
        distinct: dict[frozenset[int], str] = {}
        for name, labels in sets.items():
            distinct.setdefault(labels, name)
        nested = all(a <= b or b <= a or not a & b for a in distinct for b in distinct)
        if nested and len({label for labels in distinct for label in labels}) < sum(
            map(len, distinct)
        ):
            self.entries = self._regions(distinct)
        else:
            names = {" and ".join(kind): label for label, kind in enumerate(kinds, 1)}
            self.entries = {"labels": _with_background(names)}

    def encode(self, mask: NDArray[Any]) -> NDArray[Any]:
        """A mask of the shard set as labels, uint8 or uint16."""
        kind = np.uint8 if len(self._table) < 256 else np.uint16
        table = np.zeros(int(max(mask.max(initial=0), max(self._table))) + 1, kind)
        for value, label in self._table.items():
            table[value] = label
        return table[mask]

    def _regions(self, distinct: Mapping[frozenset[int], str]) -> dict[str, Any]:
        """Regions in the order in which nnU-Net writes them, the largest first.

        Each is written by a label that lies in no smaller one. A region that is made up of smaller
        ones is given a label more, for what is in it and in none of them.
        """
        following = max(label for labels in distinct for label in labels) + 1
        regions: dict[str, Any] = {}
        order = []
        for labels in sorted(distinct, key=len, reverse=True):
            inner = [other for other in distinct if other < labels]
            own = labels.difference(*inner)
            if own:
                order.append(min(own))
            else:
                for name, values in self.values.items():
                    if labels <= set(values):  # it and those that it lies in
                        self.values[name] = [*values, following]
                order.append(following)
                following += 1
            regions[distinct[labels]] = None  # once all labels are known
        for name in regions:
            labels_of = self.values[name]
            regions[name] = labels_of if len(labels_of) > 1 else labels_of[0]
        return {"labels": _with_background(regions), "regions_class_order": order}


def _with_background(labels: Mapping[str, Any]) -> dict[str, Any]:
    named = {f"target {name}" if name in SPECIAL else name: each for name, each in labels.items()}
    return {BACKGROUND: 0, **named}
