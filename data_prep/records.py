"""What passes between a layout, which finds and reads files, and the shard writer."""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


class NotAnImage(Exception):
    """A file that holds no image for this set: skipped, and not counted as unreadable."""


class Unreadable(Exception):
    """A file that cannot be read; the message is the reason, and names no path."""


NOT_OF_A_DECODER = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""What ends a program or a generator. All else that is raised while a file is decoded is the fault
of that file alone; decoders in Rust raise panics, which are no `Exception`s."""


@dataclass(frozen=True, slots=True)
class Reference:
    """One file (or one part of it) in a manifest; it yields zero or more records."""

    path: str
    """Path relative to the input folder, with forward slashes."""
    part: str = ""
    """Which part of the file, such as a plane."""
    group: str = ""
    """Patient, case or file: what a split never cuts in two. Hashed before it is written."""
    label: str | None = None
    """Class name, where the layout has one."""
    masks: tuple[str, ...] = ()
    """Paths of the masks (or of the files they are made from), relative to the input folder."""
    split: str = "train"
    records: int = 1
    """About how many records it yields, to fill shards evenly."""

    def identity(self) -> list[Any]:
        """What of it decides the bytes of its records and their place in the set."""
        # not `dataclasses.astuple`, which takes as long as decoding a small image
        return [
            self.path,
            self.part,
            self.group,
            self.label,
            self.masks,
            self.split,
            self.records,
        ]


@dataclass
class Sample:
    """One record to be written."""

    image: np.ndarray
    """(H, W), (H, W, 3) or a volume (D, H, W); uint8 or uint16, white is the dtype's maximum."""
    mask: np.ndarray | None = None
    """Label map of the image's height and width (and depth); uint8 or uint16, 0 is background."""
    encoded: tuple[str, bytes] | None = None
    """Extension and bytes of the image where it is already encoded as it shall be stored."""
    group: str = ""
    """Patient, if only the file itself names it; otherwise that of the reference."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Further members of the record's JSON, free of anything that names a patient."""
    volume: bool = False


def unknown_size(_: Reference) -> int:
    """No bytes, where nothing can be said before reading."""
    return 0


@dataclass(frozen=True)
class Source:
    """A manifest and the function that reads its references (picklable, for worker processes)."""

    layout: str
    references: list[Reference]
    read: Callable[[Reference], Iterable[Sample | NotAnImage | Unreadable]]
    """Gives the samples of a reference. It raises if the file cannot be read as a whole; in place
    of a sample it may give the error that kept this one from being read."""
    options: dict[str, Any]
    """Options that decide the bytes, by name: shards made with others are not mixed."""
    labels: dict[str, list[int]] | None = None
    """Segmentation: the mask values of each target. A value may belong to several targets."""
    stored_bytes: Callable[[Reference], int] = unknown_size
    """About how many bytes the records of a reference take in a shard."""
    root: Path | None = None
    """Folder that the paths of references are relative to, if they are files."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Defaults of the options: what a set made before an option existed was made with."""


def printable(text: str) -> str:
    """A file's or folder's name as text: one that is not UTF-8 is read as Latin-1."""
    try:
        text.encode()
    except UnicodeEncodeError:  # the bytes that Python could not decode
        return os.fsencode(text).decode("latin-1")
    return text


def keyed_hash(text: str, salt: str, digest_size: int = 16) -> str:
    """BLAKE2b of `text` under the key `salt`, hexadecimal."""
    return hashlib.blake2b(
        os.fsencode(text), key=os.fsencode(salt), digest_size=digest_size
    ).hexdigest()


def patient_of(sample: Sample, reference: Reference) -> str:
    """Whose a sample is: as its file says, else as its layout does, else the file itself."""
    return sample.group or reference.group or reference.path


def group_hash(group: str, salt: str) -> str:
    """What stands for a patient or case in a record."""
    return keyed_hash(group, salt, 8)


def record_key(reference: Reference, salt: str) -> str:
    """Key of a reference's records: a keyed hash of its path and part."""
    return keyed_hash(f"{reference.path}\0{reference.part}", salt)
