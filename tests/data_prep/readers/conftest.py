"""DICOM files made on the fly."""

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)


@pytest.fixture(scope="session")
def make():
    """Write an uncompressed DICOM image of some pixels, with header values by name."""

    def write(path, pixels, syntax=ExplicitVRLittleEndian, **header):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = syntax
        meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        meta.MediaStorageSOPInstanceUID = "1.2.3"
        dataset = Dataset()
        dataset.file_meta = meta
        dataset.SOPClassUID = SecondaryCaptureImageStorage
        dataset.SOPInstanceUID = "1.2.3"
        dataset.Rows, dataset.Columns = pixels.shape[-2:] if pixels.ndim < 4 else pixels.shape[1:3]
        dataset.SamplesPerPixel = 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
        dataset.HighBit = dataset.BitsStored - 1
        dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
        if pixels.ndim == 3:
            dataset.NumberOfFrames = len(pixels)
        little = syntax != ExplicitVRBigEndian
        dataset.PixelData = pixels.astype(
            pixels.dtype.newbyteorder("<" if little else ">")
        ).tobytes()
        dataset["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
        for name, value in header.items():
            setattr(dataset, name, value)
        dataset.save_as(path, implicit_vr=False, little_endian=little, enforce_file_format=True)
        return path

    return write


@pytest.fixture(scope="session")
def compress(make):
    """Write a DICOM file of compressed frames of any kind, its header as for pixels of `like`."""

    def write(path, frames, syntax, like=(40, 56), has_bot=True, **header):
        make(path, np.zeros(like, np.uint8) if isinstance(like, tuple) else like)
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = MPEG2MPML
        if len(frames) > 1:
            dataset.NumberOfFrames = len(frames)
        dataset.PixelData = encapsulate(frames, has_bot=has_bot)
        dataset["PixelData"].VR = "OB"
        for name, value in header.items():
            setattr(dataset, name, value)
        dataset.save_as(path)
        # pydicom writes no transfer syntax that it does not know
        size = len(MPEG2MPML) + len(MPEG2MPML) % 2
        stand_in, uid = (str(each).encode().ljust(size, b"\0") for each in (MPEG2MPML, syntax))
        path.write_bytes(path.read_bytes().replace(stand_in, uid))
        return path

    return write
