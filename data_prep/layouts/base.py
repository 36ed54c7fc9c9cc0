"""What a layout is: how one kind of collection is found and read, with its own options."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal

import numpy as np

from data_prep.common.errors import UserError
from data_prep.layouts._find import find_files
from data_prep.options import PhotographOptions, ReadOptions
from data_prep.readers.images import read_image
from data_prep.readers.nifti import count_voxels, read_labelled
from data_prep.records import NotAnImage, Reference, Sample, Source, Unreadable

Stage = Literal["pretraining", "segmentation"]

Records = Iterable[Sample | NotAnImage | Unreadable]
"""Samples of a reference; in place of one, the error that kept it from being read."""


@dataclass(frozen=True, kw_only=True)
class Layout(ABC):
    """How one kind of collection is found and read.

    A subclass is a frozen dataclass: its fields are the layout's options, their docstrings its
    help. Instances are pickled for worker processes.
    """

    stage: ClassVar[Stage]
    """`pretraining` for images without masks, `segmentation` for images with masks."""
    summary: ClassVar[str]
    """One line: what collection this is."""
    tree: ClassVar[str] = ""
    """The folder tree that it expects."""
    groups_in_files: ClassVar[bool] = False
    """Whether files say themselves which patient they show, so that it is known on reading."""

    @abstractmethod
    def references(self) -> list[Reference]:
        """The files of the collection, found without reading their pixels.

        Raises:
            UserError: The collection is not there or not of this layout.
        """

    @abstractmethod
    def read(self, reference: Reference) -> Records:
        """The samples of one reference.

        Raises:
            NotAnImage: It holds no image for this set; it is skipped.
            Unreadable: It cannot be read.
        """

    @property
    def groups_known(self) -> bool:
        """Whether its references already name the patient, so that a split cuts none in two."""
        return not self.groups_in_files

    def targets(self) -> dict[str, list[int]] | None:
        """Mask values of each target; None for stage one. A value may belong to several targets."""
        return None

    def stored_bytes(self, reference: Reference) -> int:
        """About how many bytes the records of a reference take in a shard; 0 if nobody knows."""
        return 0

    def source(self, name: str, references: list[Reference]) -> Source:
        """What the shard writer takes.

        Args:
            name: Of the layout.
            references: Those of `references`, or some of them.
        """
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        defaults = {field.name: field.default for field in fields(self)}
        for values in (options, defaults):
            values.pop("input", None)  # a data set that moved is the same one
        return Source(
            name,
            references,
            self.read,
            options,
            self.targets(),
            self.stored_bytes,
            self.input if isinstance(self, FolderLayout) else None,
            {key: value for key, value in defaults.items() if value is not MISSING},
        )


@dataclass(frozen=True, kw_only=True)
class FolderLayout(Layout):
    """A collection below one folder."""

    input: Path
    """Folder of the collection."""

    def files(self) -> list[str]:
        """Paths of all files below the input folder, relative to it, sorted.

        Raises:
            UserError: It is not a folder, or cannot be listed.
        """
        return find_files(self.root())

    def matching(self, pattern: re.Pattern[str]) -> Iterator[tuple[PurePosixPath, re.Match[str]]]:
        """Each file whose whole name matches a pattern: its path below the input, and the match."""
        for path in map(PurePosixPath, self.files()):
            if match := pattern.fullmatch(path.name):
                yield path, match

    def stored_bytes(self, reference: Reference) -> int:
        """The size of its file; of a photograph that is scaled down, no more than its pixels."""
        try:
            size = os.stat(f"{self.input}/{reference.path}").st_size  # noqa: PTH116, half the time
        except OSError:
            return 0
        if isinstance(self, PhotographOptions) and self.max_size is not None:
            return min(size, self.max_size**2)
        return size

    def root(self) -> Path:
        """The input folder.

        Raises:
            UserError: It is not a folder.
        """
        if not self.input.is_dir():
            raise UserError(f"input: {self.input} is not a folder")
        return self.input


@dataclass(frozen=True, kw_only=True)
class MaskedImages(FolderLayout, ReadOptions):
    """Image files with one or more mask files each."""

    stage = "segmentation"
    modality: ClassVar[str | None] = None

    @abstractmethod
    def read_mask(self, reference: Reference, image: np.ndarray) -> np.ndarray:
        """Label map (H, W) of an image (H, W) or (H, W, 3)."""

    def read(self, reference: Reference) -> Iterator[Sample]:
        """The image with its mask."""
        if not reference.masks:
            raise NotAnImage("has no mask")
        picture = read_image(self.input / reference.path, self)
        mask = self.read_mask(reference, picture.array)
        meta = {"modality": self.modality}
        yield Sample(picture.array, mask, encoded=picture.encoded, meta=meta)


@dataclass(frozen=True, kw_only=True)
class LabelledVolumes(FolderLayout, ReadOptions):
    """NIfTI volumes with one label map each."""

    stage = "segmentation"
    modality: ClassVar[str | None] = None

    def read(self, reference: Reference) -> Iterator[Sample]:
        """The volume with its label map."""
        image, label = self.input / reference.path, self.input / reference.masks[0]
        yield read_labelled(image, label, self, self.modality)

    def stored_bytes(self, reference: Reference) -> int:
        """Those of all voxels and of their labels, as the header counts them."""
        return (self.bits // 8 + 1) * count_voxels(self.input / reference.path)
