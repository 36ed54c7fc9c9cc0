"""Masks of the files of labels that belong to a DICOM series, of either kind."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data_prep.readers.dicom_labels import SEGMENTATIONS
from data_prep.readers.dicom_seg import seg_masks
from data_prep.readers.dicom_stacks import element, read_slice_header
from data_prep.readers.rtstruct import rtstruct_masks


def label_masks(
    path: Path, affine: np.ndarray, shape: tuple[int, int, int], wanted: Callable[[str], bool]
) -> Iterator[tuple[str, int, np.ndarray]]:
    """What a DICOM-SEG or RTSTRUCT file marks: see `seg_masks` and `rtstruct_masks`."""
    is_seg = element(read_slice_header(path), "SOPClassUID") in SEGMENTATIONS
    yield from (seg_masks if is_seg else rtstruct_masks)(path, affine, shape, wanted)
