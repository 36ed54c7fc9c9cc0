"""Where masks of DICOM images lie in space, as pixels of the images and as dcmqi reads them."""

import subprocess
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from nibabel.affines import apply_affine
from scipy.spatial import KDTree

HAS_DCMQI = find_spec("dcmqi") is not None  # there is none for Linux on ARM
LPS_TO_RAS = np.array([-1, -1, 1])


def assert_at(found, paths, marked):
    """The points (n, 3) in millimetres to the right, front and head are those of the pixels."""
    expected = []
    for path, plane in zip(paths, marked, strict=True):
        image = pydicom.dcmread(path)
        across, down = np.reshape(image.ImageOrientationPatient, (2, 3)).astype(float)
        rows, columns = np.nonzero(plane)
        height, width = map(float, image.PixelSpacing)
        place = np.array(image.ImagePositionPatient, float)
        points = place + np.outer(columns * width, across) + np.outer(rows * height, down)
        expected.append(points * LPS_TO_RAS)
    distances, nearest = KDTree(np.concatenate(expected)).query(found)
    assert distances.max() < 0.01 and len(set(nearest)) == len(found) == marked.sum()


def assert_dcmqi_reads(seg, paths, values):
    """dcmqi finds each object as a file of its own, where it lies in space."""
    program = Path(sysconfig.get_path("scripts")) / "segimage2itkimage"
    given = ["--inputDICOM", seg, "--outputDirectory", seg.parent, "--outputType", "nii"]
    subprocess.run([program, *given], check=True, capture_output=True)
    for number in (1, 2):
        mask = nibabel.load(seg.parent / f"{number}.nii.gz")
        found = apply_affine(mask.affine, np.argwhere(np.asarray(mask.dataobj) > 0))
        assert_at(found, paths, values == number)
