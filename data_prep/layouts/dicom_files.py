"""DICOM images below a folder, whatever their names: loose files, or folders of series."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import Literal

import numpy as np
from nibabel.spatialimages import SpatialImage

from data_prep.common.errors import UserError
from data_prep.layouts._dicom import Found, FoundStack, find_volumes
from data_prep.layouts.base import FolderLayout
from data_prep.options import ReadOptions, SliceOptions
from data_prep.readers.dicom import read_pictures
from data_prep.readers.dicom_header import is_dicom
from data_prep.readers.dicom_labels import Labels, matches
from data_prep.readers.dicom_masks import label_masks
from data_prep.readers.dicom_series import load_series
from data_prep.readers.dicom_stacks import read_slice_header, slices_of
from data_prep.readers.intensity import to_integers
from data_prep.readers.nifti import volume_from_nifti
from data_prep.readers.slices import slices_of_volume
from data_prep.records import NotAnImage, Reference, Sample, Source, Unreadable


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

    @property
    def groups_known(self) -> bool:
        """Of volumes, whose headers are all read first."""
        return self.series == "volumes"

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


MAX_OVERLAPPING = 8
"""With so many targets each has a bit of an 8-bit label map, so that they may overlap."""
MAX_TARGETS = 255
BETWEEN = ""
"""What stands between the images and the labels of a reference."""
SHOWN = 12
"""Names in an error."""


@dataclass(frozen=True, kw_only=True)
class LabelledDicom(FolderLayout, ReadOptions):
    """Series of CT, MR and PET as volumes, with the DICOM-SEG and RTSTRUCT files made on them.

    A file of labels belongs to the series whose images it names. Several of one series are united.
    """

    stage = "segmentation"
    groups_in_files = True
    summary = "DICOM series with DICOM-SEG or RTSTRUCT labels, of any names, below any folders"
    tree = """
any/folders/any_name.dcm   images and labels; they belong together by their UIDs
"""

    labels: dict[str, list[str]] | None = None
    """Names of segments and regions of each target, with * and ?, whatever their case, e.g.
    {liver: [liver], tumour: ["gtv*", "lesion ?"]}. Without it each name that occurs is a target.
    Such names are typed by hand and are written to dataset.json, so those that hold a part of the
    patient's name or number, or five digits in a row, are refused: look at the others too. Up to 8
    targets may overlap; of more none may, and a volume where they do is refused."""
    missing: Literal["skip", "empty"] = "skip"
    """What it means that a series has no label of any target: that nobody looked for them, so that
    it is left out, or that they are not there."""

    def targets(self) -> dict[str, list[int]]:
        """The n-th target is bit n of a mask value; of more than 8 it is value n + 1.

        Raises:
            UserError: None, or too many; see also `references`.
        """
        names = list(self._names)
        if not 1 <= len(names) <= MAX_TARGETS:
            raise UserError(
                f"labels: {len(names)} targets, of at most {MAX_TARGETS}; name them with --labels"
            )
        if len(names) > MAX_OVERLAPPING:
            return {name: [number + 1] for number, name in enumerate(names)}
        values = range(1, 2 ** len(names))
        return {
            name: [value for value in values if value >> bit & 1] for bit, name in enumerate(names)
        }

    def references(self) -> list[Reference]:
        """One reference for each volume with labels; the patient is the group.

        A file of labels without its images is one too: reading it says so.

        Raises:
            UserError: Nothing is named as a target, or names may be a patient's.
        """
        self._require_targets()
        references = [
            Reference(
                stack.names[0],
                part=stack.part,
                group=stack.group or stack.names[0],
                masks=(*stack.names, BETWEEN, *labels),
            )
            for stack in self._found.stacks
            if (labels := self._labels(stack)) or self.missing == "empty"
        ]
        return references + [
            Reference(each.name, group=each.group or each.name) for each in self._found.labels
        ]

    def read(self, reference: Reference) -> Iterator[Sample]:
        """The volume with its label map.

        Raises:
            NotAnImage: Labels without images; see also `load_series`.
            Unreadable: See `load_series`, `seg_masks` and `rtstruct_masks`.
        """
        if not reference.masks:
            raise NotAnImage("no series of its patient that it labels is in the input")
        between = reference.masks.index(BETWEEN)
        images, labels = reference.masks[:between], reference.masks[between + 1 :]
        paths = [self.input / name for name in images]
        series = load_series(paths, int(reference.part or 0), self.max_pixels, self.max_bytes)
        limits = series.limits(self.window)
        volume = volume_from_nifti(
            series.image, max_pixels=self.max_pixels, max_bytes=self.max_bytes
        )
        marked = SpatialImage(self._mask(series.image, labels).T, series.image.affine)
        yield Sample(
            # by slices, so that the volume is not held as floating point numbers
            np.stack([to_integers(each, limits, self.bits) for each in volume.array]),
            volume_from_nifti(marked, max_pixels=self.max_pixels, max_bytes=self.max_bytes).array,
            meta=volume.meta() | series.meta | {"window": list(series.in_file(limits))},
            volume=True,
        )

    def _mask(self, image: SpatialImage, labels: Sequence[str]) -> np.ndarray:
        """Label map (slices, rows, columns) of a series."""
        overlap = len(self._names) <= MAX_OVERLAPPING
        columns, rows, slices = image.shape
        shape = slices, rows, columns
        mask = np.zeros(shape, np.uint8)
        for name in labels:
            for found, depth, marked in label_masks(
                self.input / name, image.affine, shape, lambda each: bool(self._of(each))
            ):
                for number in self._of(found):
                    if overlap:
                        mask[depth] |= marked.astype(np.uint8) << number
                        continue
                    if np.setdiff1d(mask[depth][marked], [0, number + 1]).size:
                        raise Unreadable(
                            f"its targets overlap: of more than {MAX_OVERLAPPING} none may; choose"
                            " fewer with --labels"
                        )
                    mask[depth][marked] = number + 1
        return mask

    def _of(self, name: str) -> list[int]:
        """Which targets a segment or region is of."""
        return [
            number
            for number, patterns in enumerate(self._names.values())
            if any(matches(name, pattern) for pattern in patterns)
        ]

    def _labels(self, stack: FoundStack) -> list[str]:
        """The files of labels of a volume that hold a target."""
        return [each.name for each in stack.labels if any(map(self._of, each.targets))]

    def source(self, name: str, references: list[Reference]) -> Source:
        """What the shard writer takes: workers are sent the names found, and not all headers."""
        return FolderLayout.source(replace(self, labels=self._names), name, references)

    def stored_bytes(self, reference: Reference) -> int:
        """Those of all voxels and of their labels, as the header of a slice counts them."""
        try:
            slices = slices_of(read_slice_header(self.input / reference.path), Path(reference.path))
        except (Unreadable, OSError):  # reading it says why
            return 0
        rows, columns = slices[0].size
        files = reference.masks.index(BETWEEN) if reference.masks else 0
        return (self.bits // 8 + 1) * rows * columns * max(files, len(slices))

    @cached_property
    def _found(self) -> Found:
        return find_volumes(self.root(), self.files())

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """Patterns of names by target: the option, or each name found as its own.

        Raises:
            UserError: See `references`.
        """
        if self.labels is not None:
            return self.labels
        files, known = self._known
        if not known:
            raise UserError(
                f"input: {self.input} holds no series of CT, MR or PET with a DICOM-SEG or RTSTRUCT"
            )
        if personal := [each.name for each in files if each.personal]:
            raise UserError(
                f"labels: a name in {personal[0]} may say whose it is ({len(personal)} files); name"
                " the targets, as in --labels '{liver: [liver*]}'"
            )
        return {name: [escape(name)] for name in known}

    def _require_targets(self) -> None:
        """Refuse targets that nothing is named as, as after a slip of the pen."""
        files, known = self._known
        for target, patterns in self._names.items():
            if not any(matches(name, pattern) for name in known for pattern in patterns):
                safe = {name for each in files if not each.personal for name in each.targets}
                names = ", ".join(sorted(safe)[:SHOWN]) or "none"
                raise UserError(
                    f"labels: no segment or region is named as those of {target!r}; of"
                    f" {len(known)} names there are {names}"
                )

    @property
    def _known(self) -> tuple[list[Labels], list[str]]:
        """The files of labels of all volumes, and the names in them."""
        files = [each for stack in self._found.stacks for each in stack.labels]
        return files, sorted({name for each in files for name in each.targets if name})
