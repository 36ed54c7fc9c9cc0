"""Targets as nnU-Net's labels: what it writes back is each target as it was."""

import numpy as np
import pytest

from finetune.external.encoding import Encoding

DISJOINT = {"liver": [1], "tumour": [2]}
SPARSE = {"liver": [3, 7], "ignore": [200]}
NESTED = {"whole": [1, 2, 4], "core": [2, 4], "enhancing": [4]}
MADE_UP = {"liver": [1], "tumour": [2], "both": [1, 2]}
TWICE_MADE_UP = {"all": [1, 2, 3, 9], "pair": [1, 2], "one": [1], "two": [2], "rest": [3, 9]}
SAME = {"disc": [1, 2], "retina": [1, 2], "cup": [2]}
CROSSING = {"left": [1, 2], "right": [2, 3], "far": [5]}


def as_nnunet_writes(regions: dict, order: list[int], truth: dict) -> np.ndarray:
    """Regions painted one after the other over what is there, as nnU-Net's label manager does."""
    written = np.zeros(next(iter(truth.values())).shape, int)
    names = [name for name in regions if name != "background"]
    for name, value in zip(names, order, strict=True):
        written[truth[name]] = value
    return written


@pytest.mark.parametrize(
    "targets", [DISJOINT, SPARSE, NESTED, MADE_UP, TWICE_MADE_UP, SAME, CROSSING]
)
def test_targets_come_back_as_they_were(targets) -> None:
    mask = np.random.default_rng(0).integers(0, 11, (40, 30)).astype(np.uint8)
    mask[:3] = 200
    encoding = Encoding(targets)
    labels, entries = encoding.encode(mask), encoding.entries
    values = {0, *np.unique(labels).tolist()}
    assert values == set(range(len(values))), "nnU-Net wants consecutive labels"
    truth = {name: np.isin(mask, each) for name, each in targets.items()}
    written = labels
    if "regions_class_order" in entries:
        for name, each in entries["labels"].items():
            if name != "background":
                assert np.array_equal(np.isin(labels, each), truth[name])
        written = as_nnunet_writes(entries["labels"], entries["regions_class_order"], truth)
    for name, each in encoding.values.items():
        assert np.array_equal(np.isin(written, each), truth[name]), name


def test_what_dataset_json_says() -> None:
    assert Encoding(DISJOINT).entries == {"labels": {"background": 0, "liver": 1, "tumour": 2}}
    mask = np.array([0, 1, 2, 5], np.uint8)  # 5 is no target's
    assert Encoding(DISJOINT).encode(mask).tolist() == [0, 1, 2, 0]
    assert Encoding(SPARSE).entries == {"labels": {"background": 0, "liver": 1, "target ignore": 2}}
    assert Encoding(NESTED).entries == {
        "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
        "regions_class_order": [1, 2, 3],
    }
    # what is of both, and of neither of the two, is the label 3, which no training case has
    assert Encoding(MADE_UP).entries == {
        "labels": {"background": 0, "both": [1, 2, 3], "liver": 1, "tumour": 2},
        "regions_class_order": [3, 1, 2],
    }
    crossing = {"background": 0, "left": 1, "left and right": 2, "right": 3, "far": 4}
    assert Encoding(CROSSING).entries == {"labels": crossing}
