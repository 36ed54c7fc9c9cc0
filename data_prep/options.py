"""Options of the `shard` and `shard-seg` commands."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from data_prep.common.errors import UserError

Window = Literal["auto", "percentile", "full"] | tuple[float, float]

PILLOW_LIMIT = 178_956_970
"""Pillow itself refuses images of more pixels than this."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How files become pixels."""

    layout: str
    """Name of the layout: a module of data_prep.layouts."""
    input: Path | None = None
    """Folder with the images; for `hf` also a name on the Hub; `samples` needs none."""
    bits: Literal[8, 16] = 8
    """Bits of grey values made by windowing; 8-bit files stay 8-bit."""
    window: Window = "auto"
    """Intensities mapped to black and white: `auto` (the file's own window, else percentiles),
    `percentile` (0.5 to 99.5), `full` (minimum to maximum) or two numbers such as [-160, 240]."""
    channel: int = 0
    """Which channel of a multi-channel or 4D NIfTI image is read."""
    max_pixels: int = 89_000_000
    """Images with more pixels than this (in a volume: per slice) are refused."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_pixels <= PILLOW_LIMIT:
            raise UserError(f"max_pixels: {self.max_pixels} is not between 1 and {PILLOW_LIMIT}")
        if isinstance(self.window, tuple) and self.window[0] >= self.window[1]:
            raise UserError(f"window: {list(self.window)} is not a rising pair of numbers")

    def recipe(self) -> str:
        """The options that decide the pixels, as JSON: shards of another recipe are not mixed."""
        elsewhere = {"input", "held_out", *(field.name for field in fields(WriteOptions))}
        values = {name: value for name, value in asdict(self).items() if name not in elsewhere}
        return json.dumps(values, sort_keys=True)

    def root(self) -> Path:
        """The input folder, which must exist."""
        if self.input is None:
            raise UserError(f"input: layout {self.layout} needs --input FOLDER")
        if not self.input.is_dir():
            raise UserError(f"input: {self.input} is not a folder")
        return self.input


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """How records become shards."""

    output: Path
    """Folder of the shard set."""
    shard_records: int = 512
    """Records in a shard, about: a file with many slices or frames is not cut."""
    seed: int = 0
    """Seed of the order of records and of the splits."""
    salt: str = "samaritan"
    """Key of the hashes that stand for file paths and patients; keep one of your own secret where
    those could be guessed. It is stored nowhere."""
    workers: int = 1
    """Processes; the bytes written do not depend on it."""
    task: int = 0
    """Of a job array: this task writes shards task, task + tasks, ..."""
    tasks: int = 1
    """Number of tasks of a job array; the one that finishes last writes dataset.json. Any number
    gives the same set, and another one may finish what was begun."""
    max_bad: float = 0.01
    """The command fails at its end, without a dataset.json, if more than this fraction of the
    files was unreadable. Another run tries those again and keeps the other shards."""

    def __post_init__(self) -> None:
        if self.shard_records < 1 or self.workers < 1:
            raise UserError("shard_records and workers must be at least 1")
        if not 0 <= self.task < self.tasks:
            raise UserError(f"task: {self.task} is not one of 0 to {self.tasks - 1} (--tasks)")
        if len(self.salt.encode()) > 64:
            raise UserError("salt: at most 64 bytes")


@dataclass(frozen=True, kw_only=True)
class ShardConfig(ReadOptions, WriteOptions):
    """Unlabelled (or class-labelled) images to shards for stage one."""

    planes: tuple[Literal["axial", "coronal", "sagittal"], ...] = ("axial", "coronal", "sagittal")
    """Planes in which volumes are sliced, e.g. [axial, coronal]."""
    min_content: float = 0.05
    """A slice is kept if at least this fraction of it is brighter than its volume's mean."""
    min_size: int = 32
    """Images with a side shorter than this (pixels) are skipped."""
    max_size: int | None = None
    """Photographs with a longer side are scaled down to this one, once (pixels)."""
    held_out: Path | None = None
    """Segmentation shard set (made with the same salt): patients of its splits other than train
    are left out, so that stage one does not see what stage two is tested on."""
    subset: str | None = None
    """Hf layout: configuration of the data set, where it has several."""
    group_column: str = ""
    """Hf layout: column that names the patient; without it each image is a group of its own."""
    class_folders: bool = False
    """Folder layout: the folder of an image is its class, and its name is stored. Leave it off
    where folders are named after patients."""

    def __post_init__(self) -> None:
        ReadOptions.__post_init__(self)
        WriteOptions.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class ShardSegConfig(ReadOptions, WriteOptions):
    """Images or volumes with masks to shards for stage two."""

    split: dict[str, float] | None = None
    """Fractions of the groups (patients, cases), e.g. {train: 0.8, test: 0.2}, which is the
    default for a layout without a split of its own."""
    image: str = ""
    """Pairs layout: image files below the input, with one * that is the case's name."""
    mask: str = ""
    """Pairs layout: mask files below the input, with the same *."""
    labels: dict[str, list[int]] | None = None
    """Pairs layout: mask values of each target, e.g. {disc: [1, 2], cup: [2]}; without it a mask
    has one value beside 0, the target `target`."""
    threshold: int | None = None
    """Image masks of one target are made binary, target where the grey value is at least this;
    without it they must have one value beside 0."""
    raters: Literal["majority", "each"] = "majority"
    """Riga layout: one record an image with what most raters marked, or one for each rater."""
    group: str = ""
    """Pairs layout: a regular expression on the case's name whose first group is the patient."""

    def __post_init__(self) -> None:
        ReadOptions.__post_init__(self)
        WriteOptions.__post_init__(self)
