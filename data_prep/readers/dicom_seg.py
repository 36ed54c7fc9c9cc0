"""Masks of DICOM-SEG files on the voxels of the series that they segment.

Frames are laid on the series by their place in space; turned, mirrored and cropped frames fit,
frames on another grid do not: nothing is resampled.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from data_prep.readers.dicom import functional_group
from data_prep.readers.dicom_header import read_elements
from data_prep.readers.dicom_labels import plain_name
from data_prep.readers.dicom_stacks import plane_affine
from data_prep.records import NOT_OF_A_DECODER, Unreadable

OFF = 0.2
"""How far a frame's corners may lie from voxel centres (in voxels): headers are rounded."""
HALF = 0.5
"""A voxel is of a segment if at least this fraction of it, or this probability, is."""


def seg_masks(
    path: Path, affine: np.ndarray, shape: tuple[int, int, int], wanted: Callable[[str], bool]
) -> Iterator[tuple[str, int, np.ndarray]]:
    """What each frame of a DICOM-SEG file marks: binary, fractional or a label map.

    Args:
        affine: (4, 4): column, row and slice of the series to millimetres (RAS+).
        shape: Slices, rows and columns of the series.
        wanted: Whether a segment's plain name is read.

    Yields:
        Plain name of the segment, slice, and (rows, columns) bool.

    Raises:
        Unreadable: Damaged, or on another grid than the series.
    """
    import highdicom  # takes as long to import as all else here

    try:
        dataset, _ = read_elements(path)
        seg = highdicom.seg.Segmentation.from_dataset(dataset, copy=False)
        names = {
            number: plain_name(str(seg.get_segment_description(number).SegmentLabel))
            for number in seg.segment_numbers
        }
        kind, tiled = str(seg.SegmentationType), seg.is_tiled
    except (OSError, Unreadable):
        raise
    except Exception as error:  # highdicom raises nearly anything for what is not to the standard
        raise Unreadable(f"its DICOM-SEG cannot be read ({type(error).__name__})") from error
    if tiled:
        raise Unreadable("its DICOM-SEG is of a slide")
    if int(seg.Rows) * int(seg.Columns) > shape[1] * shape[2]:  # before a decoder takes memory
        raise Unreadable("its DICOM-SEG has larger frames than the series; it is not resampled")
    # segment 0 is the background of a label map
    names = {number: name for number, name in names.items() if number and wanted(name)}
    voxel = np.linalg.inv(affine)
    for index in range(int(seg.get("NumberOfFrames", 1))):
        segment = None if kind == "LABELMAP" else _segment(seg, index)
        if segment is not None and segment not in names:
            continue
        plane = plane_affine(seg, index)
        if plane is None:
            raise Unreadable("its DICOM-SEG does not say where its frames lie")
        try:
            frame = seg.get_stored_frame(index + 1)  # (h, w), frames are counted from 1
        except NOT_OF_A_DECODER:
            raise
        except BaseException as error:
            raise Unreadable(
                f"frames of its DICOM-SEG cannot be decoded ({type(error).__name__})"
            ) from error
        for number in names if segment is None else (segment,):
            if segment is None:
                mask = frame == number
            elif kind == "FRACTIONAL":
                mask = frame >= HALF * float(seg.MaximumFractionalValue)
            else:
                mask = frame > 0
            if mask.any():
                depth, placed = _place(mask, voxel @ plane, shape)
                yield names[number], depth, placed


def _segment(seg: Dataset, index: int) -> int:
    """Number of the segment that a frame shows."""
    group = functional_group(seg, index, "SegmentIdentificationSequence")
    if group is None:
        raise Unreadable("its DICOM-SEG does not say which segment a frame shows")
    return int(group.ReferencedSegmentNumber)


def _place(
    mask: np.ndarray, plane: np.ndarray, shape: tuple[int, int, int]
) -> tuple[int, np.ndarray]:
    """Slice and (rows, columns) of the series of what a frame marks.

    Args:
        plane: (4, 3): column and row of the frame to column, row and slice of the series.
    """
    height, width = mask.shape
    nearest = np.rint(plane[:3])
    corners = np.array(
        [(column, row, 1) for column in (0, width - 1) for row in (0, height - 1)]
    ).T  # (3, 4)
    along = np.abs(nearest[:, :2]).tolist()
    turned = along == [[0, 1], [1, 0], [0, 0]]
    if np.abs((plane[:3] - nearest) @ corners).max() > OFF or not (
        turned or along == [[1, 0], [0, 1], [0, 0]]
    ):
        raise Unreadable("its DICOM-SEG lies on another grid than the series; it is not resampled")
    rows, columns = np.nonzero(mask)
    x, y, depth = (nearest @ np.stack([columns, rows, np.ones_like(rows)])).astype(int)
    if not (
        0 <= depth[0] < shape[0]
        and min(x.min(), y.min()) >= 0
        and y.max() < shape[1]
        and x.max() < shape[2]
    ):
        raise Unreadable("its DICOM-SEG marks voxels outside the series")
    placed = np.zeros(shape[1:], bool)
    placed[y, x] = True
    return int(depth[0]), placed
