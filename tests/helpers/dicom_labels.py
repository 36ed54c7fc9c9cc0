"""Small series of CT slices with DICOM-SEG and RTSTRUCT files that were drawn on them."""

import numpy as np
import pydicom
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from nibabel.spatialimages import SpatialImage
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

from data_prep.layouts import find_layout
from data_prep.readers.nifti import volume_from_nifti

WHOLE = ("--split", "{train: 1.0}")


SHAPE = (6, 20, 18)


TURN = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]


TURN *= np.sign(np.linalg.det(TURN))


OBLIQUE = {"orientation": (*TURN[0], *TURN[1]), "step": 2.5 * TURN[2]}


def volume(seed=0):
    return np.random.default_rng(seed).integers(0, 4000, SHAPE).astype(np.uint16)


def boxes():
    """Two overlapping boxes, (segments, slices, rows, columns) bool; the outer slices are empty."""
    masks = np.zeros((2, *SHAPE), bool)
    masks[0, 1:4, 3:12, 2:9] = True
    masks[1, 2:5, 8:15, 5:16] = True
    return masks


def in_order(array, affine):
    """(D, H, W) of an array (slices, rows, columns), as a NIfTI file of it would be read."""
    return volume_from_nifti(SpatialImage(array.T, affine)).array


def affine_of(paths):
    """(4, 4) RAS+ of a series, from the headers of its first two slices."""
    first, second = (pydicom.dcmread(path) for path in paths[:2])
    affine = np.eye(4)
    across, down = np.reshape(first.ImageOrientationPatient, (2, 3)).astype(float)
    row, column = map(float, first.PixelSpacing)
    start = np.array(first.ImagePositionPatient, float)
    step = np.array(second.ImagePositionPatient, float) - start
    affine[:3] = np.stack([across * column, down * row, step, start], axis=1)
    affine[:2] *= -1
    return affine


def write_seg(path, paths, masks, names=("Liver", "GTV_1"), kind="BINARY", **options):
    """A DICOM-SEG of masks (segments, slices, rows, columns) on a series."""
    descriptions = [
        SegmentDescription(
            number + 1,
            name,
            codes.SCT.Organ,
            codes.SCT.Liver,
            SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, name in enumerate(names)
    ]
    images = [pydicom.dcmread(each) for each in paths]
    if kind == "LABELMAP":
        pixels = (masks * np.arange(1, len(masks) + 1)[:, None, None, None]).max(0).astype(np.uint8)
    else:
        pixels = np.moveaxis(masks, 0, -1)
    seg = Segmentation(
        images,
        pixels if kind == "FRACTIONAL" else pixels.astype(np.uint8),
        SegmentationTypeValues[kind],
        descriptions,
        "1.2.99.1",
        1,
        f"1.2.99.{len(names)}.2",
        1,
        "maker",
        "model",
        "1",
        "serial",
        **options,
    )
    seg.save_as(path)
    return path


def write_rtstruct(path, paths, regions, names, patient="Roe^Jane"):
    """An RTSTRUCT of contours, (N, 3) each in (column, row, slice) of a series."""
    lps = np.diag([-1, -1, 1, 1]) @ affine_of(paths)
    image = pydicom.dcmread(paths[0])
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = RTStructureSetStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.88.1"
    dataset.Modality, dataset.PatientID, dataset.PatientName = "RTSTRUCT", "ID-4711", patient
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = image.StudyInstanceUID, "1.2.88"
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = image.SeriesInstanceUID
    study.ReferencedSOPInstanceUID = image.StudyInstanceUID
    study.RTReferencedSeriesSequence = Sequence([series])
    frame.RTReferencedStudySequence = Sequence([study])
    dataset.ReferencedFrameOfReferenceSequence = Sequence([frame])
    dataset.StructureSetROISequence, dataset.ROIContourSequence = Sequence(), Sequence()
    for number, (name, contours) in enumerate(zip(names, regions, strict=True), start=1):
        named, drawn = Dataset(), Dataset()
        named.ROINumber, named.ROIName = number, name
        drawn.ReferencedROINumber, drawn.ContourSequence = number, Sequence()
        for contour in contours:
            item = Dataset()
            item.ContourGeometricType = "CLOSED_PLANAR" if len(contour) > 1 else "POINT"
            item.NumberOfContourPoints = len(contour)
            points = np.c_[np.array(contour, float), np.ones(len(contour))] @ lps.T
            item.ContourData = [f"{value:.4f}" for value in points[:, :3].ravel()]
            drawn.ContourSequence.append(item)
        dataset.StructureSetROISequence.append(named)
        dataset.ROIContourSequence.append(drawn)
    dataset.save_as(path, enforce_file_format=True)
    return path


def square(low, high, depth):
    return [(low, low, depth), (high, low, depth), (high, high, depth), (low, high, depth)]


def read_one(folder, **options):
    """Mask of the only reference, (D, H, W), and the layout."""
    layout = find_layout("dicom", "segmentation")(input=folder, **options)
    (reference,) = layout.references()
    (sample,) = layout.source("dicom", [reference]).read(reference)
    return sample.mask
