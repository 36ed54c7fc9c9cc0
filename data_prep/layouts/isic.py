"""Dermoscopy of the ISIC archive, with the tables it comes with.

| table                            | image          | diagnosis              |
|----------------------------------|----------------|------------------------|
| HAM10000_metadata, .csv or .tab  | `image_id`     | `dx`                   |
| bcn_20k_train.csv (BCN20000)     | `bcn_filename` | `diagnosis`            |
| metadata.csv of the archive      | `isic_id`      | `diagnosis_3`, _2, _1  |

The group is `patient_id` where there is one, else `lesion_id`, since a lesion is often
photographed several times; else the image.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from data_prep.common.errors import UserError
from data_prep.layouts._isic import (
    ISIC_IMAGES,
    first_value,
    isic_group,
    isic_rows,
)
from data_prep.layouts.base import FolderLayout
from data_prep.options import PhotographOptions
from data_prep.readers.images import SUFFIXES
from data_prep.readers.photographs import read_photograph
from data_prep.records import Reference, Sample

DIAGNOSES = ("dx", "diagnosis", "diagnosis_3", "diagnosis_2", "diagnosis_1")
NOT_IMAGES = ("_segmentation", "_superpixels")


@dataclass(frozen=True, kw_only=True)
class Isic(FolderLayout, PhotographOptions):
    """Dermoscopic photographs with diagnoses; patient or lesion is the group."""

    stage = "pretraining"
    summary = "ISIC archive: dermoscopy, among them HAM10000 and BCN20000"
    tree = """
any/folders/ISIC_0024306.jpg
HAM10000_metadata.csv   or bcn_20k_train.csv, or the archive's metadata.csv: images, diagnoses
                        and lesions or patients
"""

    def references(self) -> list[Reference]:
        """One reference for each photograph, in a table or not.

        Raises:
            UserError: No table names images; lesions would then be cut in two by a split.
        """
        files = self.files()
        rows = isic_rows(self.input, files, any_name=True)
        if not rows:
            columns = ", ".join(ISIC_IMAGES)
            raise UserError(f"input: {self.input} has no table with a column {columns}")
        references = []
        for name in files:
            stem = PurePosixPath(name).stem
            if name.lower().endswith(SUFFIXES) and not stem.lower().endswith(NOT_IMAGES):
                row = rows.get(stem, {})
                label = first_value(row, DIAGNOSES)
                references.append(Reference(name, group=isic_group(row, stem), label=label))
        return references

    def read(self, reference: Reference) -> Iterator[Sample]:
        """The photograph."""
        sample = read_photograph(self.input / reference.path, self)
        sample.meta["modality"] = "dermoscopy"
        yield sample
