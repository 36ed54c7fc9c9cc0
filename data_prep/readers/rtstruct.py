"""Masks of RTSTRUCT files: closed contours in millimetres, filled on the voxels of a series.

A voxel belongs to a region if a line from its centre crosses the region's contours of that slice an
odd number of times. So a contour within another is a hole (PS3.3 C.8.8.6.3), whether it is one of
its own or is joined to the outer one by a narrow channel.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data_prep.readers.dicom_header import read_elements
from data_prep.readers.dicom_labels import plain_name
from data_prep.readers.dicom_stacks import LPS_TO_RAS
from data_prep.records import Unreadable

OFF = 0.3
"""How far a contour may lie from the middle of a slice, in slices."""
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
"""Contours that enclose something; others are points and lines."""


def rtstruct_masks(
    path: Path, affine: np.ndarray, shape: tuple[int, int, int], wanted: Callable[[str], bool]
) -> Iterator[tuple[str, int, np.ndarray]]:
    """The regions of an RTSTRUCT file, slice by slice.

    Args:
        affine: (4, 4): column, row and slice of the series to millimetres (RAS+).
        shape: Slices, rows and columns of the series.
        wanted: Whether a region's plain name is read.

    Yields:
        Plain name of the region, slice, and (rows, columns) bool.

    Raises:
        Unreadable: Damaged, or its contours do not lie in the slices.
    """
    try:
        regions = _regions(path, wanted)
    except (OSError, Unreadable):
        raise
    except Exception as error:  # pydicom raises nearly anything for damaged values
        raise Unreadable(f"its RTSTRUCT cannot be read ({type(error).__name__})") from error
    voxel = np.linalg.inv(affine) @ LPS_TO_RAS
    for name, contours in regions:
        by_slice: dict[int, list[np.ndarray]] = defaultdict(list)
        for contour in contours:
            x, y, z = voxel[:3, :3] @ contour.T + voxel[:3, 3:]
            depth = round(float(z.mean()))
            if np.abs(z - depth).max() > OFF:
                raise Unreadable("contours of its RTSTRUCT do not lie in the slices")
            if not 0 <= depth < shape[0]:
                raise Unreadable("contours of its RTSTRUCT lie outside the series")
            by_slice[depth].append(np.stack([x, y], axis=1))
        for depth, polygons in sorted(by_slice.items()):
            yield name, depth, fill(polygons, shape[1:])


def _regions(path: Path, wanted: Callable[[str], bool]) -> list[tuple[str, list[np.ndarray]]]:
    """Plain name and closed contours, (N, 3) in millimetres (LPS), of each region."""
    dataset, _ = read_elements(path)
    names = {
        int(item.ROINumber): plain_name(str(item.get("ROIName", "")))
        for item in dataset.StructureSetROISequence
    }
    regions = []
    for item in dataset.get("ROIContourSequence") or []:
        name = names[int(item.ReferencedROINumber)]
        if wanted(name):
            contours = [
                np.array(contour.ContourData, float).reshape(-1, 3)
                for contour in item.get("ContourSequence") or []
                if contour.ContourGeometricType in CLOSED and contour.get("ContourData")
            ]
            regions.append((name, contours))
    return regions


def fill(polygons: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centres lie within an odd number of polygons.

    Of a centre exactly on an edge, those on the left and upper edges are inside, so that polygons
    that share an edge share no pixel.

    Args:
        polygons: (N, 2) corners as (x, y) in pixels, where whole numbers are centres.
        shape: Rows and columns.

    Returns:
        (rows, columns) bool.
    """
    height, width = shape
    crossings = np.zeros((height, width + 1), np.int64)
    for polygon in polygons:
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            if y0 > y1:
                x0, y0, x1, y1 = x1, y1, x0, y0
            # rows whose centres are in [y0, y1)
            rows = np.arange(max(int(np.ceil(y0)), 0), min(int(np.ceil(y1)), height))
            if len(rows):
                x = x0 + (rows - y0) * (x1 - x0) / (y1 - y0)
                first = np.clip(np.ceil(x), 0, width).astype(int)  # the first centre to the right
                crossings[rows, first] += 1  # a row occurs once in an edge
    return np.cumsum(crossings[:, :width], axis=1) % 2 == 1
