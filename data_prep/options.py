"""Options of the commands, and those that several layouts share."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_prep.common.errors import UserError
from data_prep.common.hub import RepoOptions

Window = Literal["auto", "percentile", "full"] | tuple[float, float]
"""Intensities that become black and white."""
Plane = Literal["axial", "coronal", "sagittal"]

PILLOW_LIMIT = 178_956_970
"""Pillow itself refuses images of more pixels than this."""


def check_window(window: Window | None) -> None:
    """Refuse a window of two numbers that do not rise.

    Raises:
        UserError: Names them.
    """
    if isinstance(window, tuple) and not window[0] < window[1]:
        raise UserError(f"window: {list(window)} is not a rising pair of numbers")


def check_max_size(max_size: int | None) -> None:
    """Refuse a longest side of no pixel.

    Raises:
        UserError: Names it.
    """
    if max_size is not None and max_size < 1:
        raise UserError(f"max_size: {max_size} is not at least 1, or null")


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How files become pixels."""

    bits: Literal[8, 16] = 8
    """Bits of grey values made by windowing; 8-bit files stay 8-bit."""
    window: Window = "auto"
    """Intensities mapped to black and white: `auto` (the file's own window, else percentiles),
    `percentile` (0.5 to 99.5), `full` (minimum to maximum) or two numbers such as [-160, 240]."""
    max_pixels: int = 89_000_000
    """Images with more pixels than this (in a volume: per slice) are refused."""
    max_bytes: int = 4_000_000_000
    """Files whose decoded pixels (all frames of a DICOM file, one channel of a volume) take more
    bytes than this are refused, as are deflated files that inflate to more."""

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise UserError(f"max_bytes: {self.max_bytes} is not at least 1")
        if not 1 <= self.max_pixels <= PILLOW_LIMIT:
            raise UserError(f"max_pixels: {self.max_pixels} is not between 1 and {PILLOW_LIMIT}")
        check_window(self.window)


@dataclass(frozen=True, kw_only=True)
class PictureOptions(ReadOptions):
    """How images of stage one are chosen."""

    min_size: int = 32
    """Images with a side shorter than this (pixels) are skipped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_size < 1:
            raise UserError(f"min_size: {self.min_size} is not at least 1")


@dataclass(frozen=True, kw_only=True)
class PhotographOptions(PictureOptions):
    """How photographs of stage one are read."""

    max_size: int | None = None
    """Photographs with a longer side are scaled down to this one, once (pixels)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_max_size(self.max_size)


@dataclass(frozen=True, kw_only=True)
class SliceOptions(PictureOptions):
    """How volumes become the slices of stage one."""

    planes: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
    """Planes in which volumes are sliced."""
    min_content: float = 0.05
    """A slice is kept if at least this fraction of it is brighter than its volume's mean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min_content <= 1:
            raise UserError(f"min_content: {self.min_content} is not a fraction between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class MaskOptions(ReadOptions):
    """How mask images of one target are read."""

    threshold: int | None = None
    """Makes masks binary: the target is where the grey value is at least this. Without it they
    must have one value besides 0."""


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """How records become shards."""

    output: Path
    """Folder of the shard set."""
    shard_records: int = 512
    """Approximate number of records per shard: a file with many slices or frames is never split
    across shards."""
    shard_bytes: int = 1_000_000_000
    """Approximate size of a shard in bytes, as estimated from the files before they are read."""
    seed: int = 0
    """Seed of the order of records and of the splits."""
    group: str = ""
    """To whom each case belongs, so that no split cuts a patient in two: a regular expression whose
    first group, in the file's name without suffix or else in its path, is the patient; or a CSV
    file with columns file and group. Without it, as the layout knows it: often each case alone."""
    salt: str = ""
    """Key of the hashes that stand for file paths and patients. By default it is drawn at random on
    the first run. Whoever knows it can re-identify patients by trying all numbers: it is kept in
    the folder `private` of the set, which is not to be shared."""
    workers: int = 1
    """Number of processes; the bytes written do not depend on it."""
    task: int = 0
    """Index of this task of a job array: it writes the shards task, task + tasks, ..."""
    tasks: int = 1
    """Number of tasks of a job array; the one that finishes last writes dataset.json. Any number
    gives the same set, and another one may finish what was begun."""
    max_bad: float = 0.01
    """The command fails at its end, without a dataset.json, if more than this fraction of the
    files was unreadable. Running it again retries those files and keeps the other shards."""

    extend: bool = False
    """Bring an existing set up to date with its input: finished shards stay as they are, new files
    go to further shards, and shards with files that are gone or changed (by size or time) are made
    again. What was added and when is kept in history.json."""
    check_contents: bool = False
    """With extend: make every shard again from its files, and replace those that differ. It finds
    changes that size and time do not show, and takes as long as making the set."""

    def __post_init__(self) -> None:
        if min(self.shard_records, self.shard_bytes, self.workers) < 1:
            raise UserError("shard_records, shard_bytes and workers must be at least 1")
        if self.check_contents and not self.extend:
            raise UserError("check_contents: needs --extend")
        if self.check_contents and self.tasks > 1:
            raise UserError("check_contents: is for one task; give it --workers")
        if not 0 <= self.task < self.tasks:
            raise UserError(f"task: {self.task} is not one of 0 to {self.tasks - 1} (--tasks)")
        if not 0 <= self.max_bad <= 1:
            raise UserError(f"max_bad: {self.max_bad} is not a fraction between 0 and 1")
        if len(os.fsencode(self.salt)) > 64:
            raise UserError("salt: at most 64 bytes")


@dataclass(frozen=True, kw_only=True)
class ShardOptions(WriteOptions):
    """Unlabelled (or class-labelled) images to shards for stage one."""

    layout: str
    """Kind of collection, one of those listed below, or dotted path of a class from elsewhere."""
    split: dict[str, float] | None = None
    """Fractions of the groups (patients, cases), e.g. {train: 0.8, test: 0.2}; without it, all of a
    layout without a split of its own is `train`."""
    label: str = ""
    """Class of each image, instead of what the layout knows: a regular expression whose first
    group, in the file's name without suffix or else in its path, is the class; or a CSV file with
    columns file and label. Files that it does not name have none. Stored as it is, so never a name
    of a patient."""
    held_out: Path | None = None
    """Segmentation shard set: patients of its splits other than train are left out, so that stage
    one does not see what stage two is tested on."""


@dataclass(frozen=True, kw_only=True)
class ShardSegOptions(WriteOptions):
    """Images or volumes with masks to shards for stage two."""

    layout: str
    """Kind of collection, one of those listed below, or dotted path of a class from elsewhere."""
    split: dict[str, float] | None = None
    """Fractions of the groups (patients, cases), e.g. {train: 0.8, test: 0.2}, which is the
    default for a layout without a split of its own."""
    max_size: int | None = None
    """Images of a longer side, and slices of volumes, are scaled down to this one, once (pixels);
    labels with them, by nearest neighbour. The spacing is that of the new pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_max_size(self.max_size)


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Print what a shard set holds, and draw a contact sheet."""

    shards: str
    """Folder of the shard set, or its URL (https, s3, hf)."""
    split: str = "train"
    """Split shown on the contact sheet."""
    sheet: Path | None = None
    """PNG to write; default contact_sheet.png in the shard set, or in this folder for a URL."""
    images: int = 48
    """Number of records on the contact sheet, the first in the split's random order."""
    measured: int = 200
    """Number of records, in the same order, whose intensities, areas and spacing are measured."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Compare every member of a shard set with its index and checksums."""

    shards: str
    """Folder of the shard set, or its URL (https, s3, hf), from which all of it is downloaded."""


@dataclass(frozen=True, kw_only=True)
class PublishOptions(RepoOptions):
    """Upload a shard set to the Hugging Face Hub as a data set, with a card made of its figures.

    Shards, indexes, dataset.json and the card leave this machine, and nothing else of the folder.
    Log in with `hf auth login` first. Started again, it sends what has not arrived.
    """

    shards: Path
    """Folder of the shard set."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Measure sharding and loading against Pillow and webdataset on this machine."""

    images: int = 1500
    """Number of grey PNG files of 224 pixels."""
    photographs: int = 160
    """Number of JPEG files of 6 megapixels."""
    workers: int = 2
    """Processes that shard the photographs, and that load."""
    repeats: int = 3
    """Number of timings of each kind, taken in turn; the shortest counts."""
    results: Path | None = Path("docs/results.md")
    """Markdown document that keeps the figures, in a section per machine; null keeps none."""

    def __post_init__(self) -> None:
        if min(self.images, self.photographs, self.workers, self.repeats) < 1:
            raise UserError("images, photographs, workers and repeats must be at least 1")
