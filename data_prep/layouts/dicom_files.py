"""DICOM images below a folder, whatever their names: loose files, or folders of series."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from data_prep.layouts.base import FolderLayout
from data_prep.options import PictureOptions
from data_prep.readers.dicom import read_pictures
from data_prep.readers.dicom_header import is_dicom
from data_prep.records import NotAnImage, Reference, Sample


@dataclass(frozen=True, kw_only=True)
class DicomFiles(FolderLayout, PictureOptions):
    """DICOM images; every frame of a multi-frame file is a record.

    DICOM files without pictures (reports, plans, segmentations, directories) are skipped.
    """

    stage = "pretraining"
    summary = "DICOM files of any names, below any folders"
    groups_in_files = True
    tree = """
any/folders/any_name.dcm   also without a suffix; files that are not DICOM are ignored
"""

    burned_in: Literal["keep", "refuse"] = "keep"
    """Images whose header says that text is burned into their pixels (BurnedInAnnotation): `keep`
    counts them in dataset.json, `refuse` skips them. Many scanners say nothing; no pixel is
    changed."""

    def references(self) -> list[Reference]:
        """One reference for each DICOM file."""
        return [Reference(name, group=name) for name in self.files() if is_dicom(self.input / name)]

    def read(self, reference: Reference) -> Iterator[Sample]:
        """The frames of the file.

        Raises:
            NotAnImage: Text is burned in, and `burned_in` is refuse.
        """
        for sample in read_pictures(self.input / reference.path, self):
            if self.burned_in == "refuse" and sample.meta.get("burned_in"):
                raise NotAnImage("says that text is burned into its pixels")
            yield sample
