"""DICOM images below a folder, whatever their names: loose files, or folders of series."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

from data_prep.common.errors import UserError
from data_prep.layouts._dicom import find_volumes
from data_prep.layouts.base import FolderLayout
from data_prep.options import SliceOptions
from data_prep.readers.dicom import read_pictures
from data_prep.readers.dicom_header import is_dicom
from data_prep.readers.dicom_series import load_series
from data_prep.readers.nifti import volume_from_nifti
from data_prep.readers.slices import slices_of_volume
from data_prep.records import NotAnImage, Reference, Sample


@dataclass(frozen=True, kw_only=True)
class DicomFiles(FolderLayout, SliceOptions):
    """DICOM images: each file by itself, or the series of CT, MR and PET as volumes.

    DICOM files without pictures (reports, plans, segmentations, directories) are skipped.
    """

    stage = "pretraining"
    summary = "DICOM files of any names, below any folders"
    groups_in_files = True
    tree = """
any/folders/any_name.dcm   also without a suffix; files that are not DICOM are ignored
"""

    series: Literal["files", "volumes"] = "files"
    """What a record is: `files` makes one of every frame of every file, each windowed by itself;
    `volumes` puts the slices of a CT, MR or PET series in order, gives them one window (the median
    of those in their headers if each has one, else as `window` says for a file without), and slices
    the volume in `planes`. Series that are no volume are skipped with a reason. Other images stay
    files."""
    burned_in: Literal["keep", "refuse"] = "keep"
    """Images whose header says that text is burned into their pixels (BurnedInAnnotation): `keep`
    counts them in dataset.json, `refuse` skips them. Many scanners say nothing; no pixel is
    changed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        defaults = {each.name: each.default for each in fields(SliceOptions)}
        for name in ("planes", "min_content"):
            if self.series == "files" and getattr(self, name) != defaults[name]:
                raise UserError(f"{name}: is for volumes; add --series volumes")

    def references(self) -> list[Reference]:
        """One reference for each DICOM file, or for each volume and plane.

        For volumes all headers are read, so that patients are known: see `held_out`.
        """
        names = self.files()
        if self.series == "files":
            return [Reference(name, group=name) for name in names if is_dicom(self.input / name)]
        found = find_volumes(self.root(), names)
        references = [
            Reference(
                stack.names[0],
                part=f"{plane}-{stack.part}" if stack.part else plane,
                group=stack.group or stack.names[0],
                masks=stack.names,
                records=stack.records(plane),
            )
            for stack in found.stacks
            for plane in self.planes
        ]
        return references + [
            Reference(name, group=group or name) for name, group in found.others.items()
        ]

    def read(self, reference: Reference) -> Iterator[Sample]:
        """The frames of the file, or the slices of a volume in one plane.

        Raises:
            NotAnImage: Text is burned in, and `burned_in` is refuse; see also `load_series`.
        """
        for sample in self._slices(reference) if reference.masks else self._frames(reference):
            if self.burned_in == "refuse" and sample.meta.get("burned_in"):
                raise NotAnImage("says that text is burned into its pixels")
            yield sample

    def _frames(self, reference: Reference) -> Iterator[Sample]:
        return read_pictures(self.input / reference.path, self)

    def _slices(self, reference: Reference) -> Iterator[Sample]:
        plane, _, stack = reference.part.partition("-")
        paths = [self.input / name for name in reference.masks]
        series = load_series(paths, int(stack or 0), self.max_pixels, self.max_bytes)
        limits = series.limits(self.window)
        volume = volume_from_nifti(
            series.image, plane, max_pixels=self.max_pixels, max_bytes=self.max_bytes
        )
        for sample in slices_of_volume(volume, plane, self, limits):
            sample.meta |= series.meta | {"window": list(series.in_file(limits))}
            yield sample
