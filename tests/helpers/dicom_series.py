"""DICOM series and multi-frame files, made on the fly; fixtures of `tests/conftest.py`."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def make_series(
    folder: Path,
    volume: np.ndarray,
    origin=(-20.0, 10.0, 5.0),
    orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    step=(0.0, 0.0, 2.5),
    spacing=(0.8, 0.6),
    each=lambda index: {},
    series="1.2.7",
    **header,
) -> list[Path]:
    """Files by slice of `volume`, (slices, rows, columns) of stored integers.

    Args:
        origin, step: Place of the first slice, and from each to the next, mm (LPS).
        each: Header values of a slice by its number; those of `header` are of all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = np.random.default_rng(len(volume)).permutation(len(volume))
    paths = []
    for index, pixels in enumerate(volume):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(folder), series, str(index)])
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = series, "1.2.3"
        dataset.FrameOfReferenceUID, dataset.PatientID = "1.2.4", "ID-4711"
        dataset.PatientName, dataset.PatientBirthDate, dataset.PatientSex = "Roe^Jane", "", ""
        dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = dataset.StudyID = ""
        dataset.ReferringPhysicianName, dataset.SliceThickness = "", 2.5
        dataset.Modality, dataset.InstanceNumber = "CT", index + 1
        dataset.ImagePositionPatient = (np.array(origin) + index * np.array(step)).tolist()
        dataset.ImageOrientationPatient = list(orientation)
        dataset.PixelSpacing = list(spacing)
        dataset.Rows, dataset.Columns = pixels.shape[:2]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
        dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
        for name, value in (header | each(index)).items():
            setattr(dataset, name, value)
        dataset.HighBit = dataset.BitsStored - 1
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.PixelData = pixels.tobytes()
        dataset["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
        paths.append(folder / f"image {names[index]}")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def make_enhanced(path: Path, volume: np.ndarray, **groups) -> Path:
    """A multi-frame file; `groups` gives the functional groups of each frame by its number."""
    (single,) = make_series(path, volume[:1], Modality="MR")
    dataset = pydicom.dcmread(single)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        del dataset[name]
    dataset.NumberOfFrames, dataset.PixelData = len(volume), volume.tobytes()

    def group(**macros):
        item = Dataset()
        for name, elements in macros.items():
            macro = Dataset()
            for key, value in elements.items():
                setattr(macro, key, value)
            setattr(item, name, Sequence([macro]))
        return item

    dataset.SharedFunctionalGroupsSequence = Sequence(
        [
            group(
                PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
                PixelMeasuresSequence={"PixelSpacing": [0.8, 0.6]},
            )
        ]
    )
    dataset.PerFrameFunctionalGroupsSequence = Sequence(
        [group(**{name: of(index) for name, of in groups.items()}) for index in range(len(volume))]
    )
    dataset.save_as(single, enforce_file_format=True)
    return single
