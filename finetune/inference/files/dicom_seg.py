"""Masks as DICOM Segmentation (PS3.3 A.51), which names the images that it was made on."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from data_prep.common.errors import UserError
from data_prep.common.files import atomic_path
from data_prep.readers.dicom_header import read_elements
from data_prep.readers.quiet import quiet
from finetune.inference.files.base import Masks

MAKER = "samaritan"
SERIES_NUMBER = 1000
"""Added to the number of the images' series, so that the mask has one of its own beside it."""
MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyID", "StudyDate", "StudyTime"),
)
"""What an image must say, be it nothing (type 2); files that were anonymised often lack them."""


def write_seg(
    path: Path,
    places: Sequence[tuple[Path, int]],
    planes: NDArray[np.uint8],
    masks: Masks,
    thickness: float = 1.0,
) -> None:
    """Write a binary DICOM-SEG with a segment for each object.

    It lies in the frame of reference of its images, and has their patient and study. Segments are
    numbered from 1 in the order of the objects' values; frames without an object are left out.

    Args:
        places: File and frame of each image, of one series.
        planes: (N, rows, columns) values of objects, as the images are stored.
        masks: Names of the objects, and whether anybody prompted for them.
        thickness: Of a slice in mm, where the images do not say.

    Raises:
        UserError: Such a file cannot be made of these images.
    """
    files = list(dict.fromkeys(file for file, _ in places))
    with quiet():  # messages may quote a header
        try:
            images = [read_elements(file, stop_before_pixels=True)[0] for file in files]
            if int(images[0].get("NumberOfFrames") or 1) > 1:  # all of its frames are wanted
                frames = np.zeros((int(images[0].NumberOfFrames), *planes.shape[1:]), np.uint8)
                frames[[frame for _, frame in places]] = planes
                planes = frames
            for image in images:
                _complete(image, thickness)
            seg = _segmentation(images, planes, masks)
        except Exception as error:  # highdicom raises nearly anything for what it cannot use
            raise UserError(
                f"output: {path}: no DICOM-SEG can be made of these images"
                f" ({type(error).__name__}); write another format"
            ) from error
        with atomic_path(path) as temporary:
            seg.save_as(temporary)


def _complete(image: Dataset, thickness: float) -> None:
    """Give a header what a DICOM-SEG, or its readers, need of it."""
    for name in MAY_BE_EMPTY:
        if name not in image:
            setattr(image, name, "")
    groups = [
        *image.get("SharedFunctionalGroupsSequence", ()),
        *image.get("PerFrameFunctionalGroupsSequence", ()),
    ]
    measures = [each for group in groups for each in group.get("PixelMeasuresSequence", ())]
    for each in (image, *measures):
        if "PixelSpacing" in each and not each.get("SliceThickness"):
            each.SliceThickness = thickness


def _segmentation(images: Sequence[Dataset], planes: NDArray[np.uint8], masks: Masks) -> Dataset:
    # imported here: it takes as long as all else that a picture needs
    import highdicom
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes

    values = masks.values()
    number = np.zeros(256, np.uint8)
    number[values] = np.arange(1, len(values) + 1)
    algorithm = highdicom.AlgorithmIdentificationSequence(
        MAKER, codes.DCM.ArtificialIntelligence, version(MAKER)
    )
    segments = [
        SegmentDescription(
            int(number[value]),
            masks.names.get(value, f"object {value}")[:64],  # as long as a name may be
            codes.SCT.Tissue,  # what the object is, no one but the user knows
            codes.SCT.Tissue,
            "AUTOMATIC" if masks.automatic else "SEMIAUTOMATIC",
            algorithm,
        )
        for value in values
    ]
    return Segmentation(
        images,
        number[planes],
        "BINARY",
        segments,
        series_instance_uid=generate_uid(),
        series_number=int(images[0].get("SeriesNumber") or 0) + SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=MAKER,
        software_versions=version(MAKER),
        device_serial_number="0",
        series_description="Segmentation",
        # not that of the images: names of objects may be in any script
        specific_character_set="ISO_IR 192",
    )
