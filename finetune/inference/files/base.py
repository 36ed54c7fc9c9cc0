"""What can be segmented: a picture, or the slices of a volume; and its masks as files."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.common.errors import UserError
from data_prep.options import Plane, Window
from finetune.inference.options import MAX_OBJECTS

NIFTI_SUFFIXES = (".nii", ".nii.gz")
ONLY_OBJECT = 255
"""Value of object 1 in a PNG that holds no other, so that it can be seen."""


@dataclass(frozen=True)
class Reading:
    """How a file becomes slices; see `PredictConfig`."""

    window: Window = "auto"
    plane: Plane | None = None
    channel: int = 0
    series: int | None = None
    slice: int | None = None


@dataclass
class Masks:
    """Objects in an image."""

    labels: NDArray[np.uint8]
    """(D, H, W): the value of the object at each pixel, 0 for none."""
    names: dict[int, str] = field(default_factory=dict)
    """Of the objects, by value; those without one are called by their value."""
    numbered: bool = False
    """Whether objects were asked for by their numbers: then object 1 has the value 1 also in a PNG
    that holds no other."""
    automatic: bool = False
    """Whether nobody prompted for them."""

    def values(self) -> list[int]:
        """Of all objects that are named or have a pixel."""
        found = {int(value) for each in self.labels for value in np.unique(each)}
        return sorted((found | set(self.names)) - {0})


class ImageFile(ABC):
    """Slices to segment.

    Attributes:
        depth: How many slices; 1 for a picture.
        size: (height, width) of each, in pixels.
        chosen: The only slice to segment, if one was chosen.
        is_volume: Whether it has slices.
        plane: Plane of the slices of a volume.
    """

    depth: int
    size: tuple[int, int]
    chosen: int | None = None
    is_volume = True
    plane: Plane | None = None

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """Suffixes of the masks that can be written; the first one is the usual one."""

    @abstractmethod
    def read(self, depth: int) -> NDArray[Any]:
        """The pixels of a slice: (H, W) or (H, W, 3), uint8 or uint16."""

    @abstractmethod
    def write(self, masks: Masks, path: Path) -> None:
        """Write a mask under a name that ends in one of `outputs`; whatever is there is replaced.

        Raises:
            UserError: The image's header does not allow it.
        """

    @abstractmethod
    def write_map(self, values: NDArray[np.float32], path: Path) -> None:
        """Write a number of 0 to 1 for each pixel (D, H, W) as PNG or NIfTI, as the masks are.

        Raises:
            UserError: See `write`.
        """

    @abstractmethod
    def read_masks(self, path: Path) -> NDArray[np.uint8]:
        """Read a mask of this image: (D, H, W) values of objects, 0 elsewhere.

        Raises:
            UserError: It cannot be read, or lies in another geometry.
        """

    def check_output(self, path: Path) -> None:
        """Refuse a mask whose suffix is none of `outputs`.

        Raises:
            UserError: Names them.
        """
        if not path.name.lower().endswith(self.outputs):
            raise UserError(
                f"output: {path} must end in {' or '.join(self.outputs)} for this input"
            )


class SliceError(UserError):
    """Of several slices none was chosen, or one that is not there."""

    def __init__(self, path: Path, depth: int) -> None:
        super().__init__(f"slice: {path} has {depth} slices; choose one of 0 to {depth - 1}")


def check_slice(chosen: int | None, depth: int, path: Path) -> None:
    """Refuse a slice that is not there.

    Raises:
        SliceError: Says how many there are.
    """
    if chosen is not None and not 0 <= chosen < depth:
        raise SliceError(path, depth)


def check_unused(reading: Reading, path: Path, what: str, *options: str) -> None:
    """Refuse options that would do nothing.

    Args:
        what: What the file is, for the message.
        options: Names of options that are not for it.

    Raises:
        UserError: Names the option.
    """
    for name in options:
        if getattr(reading, name) != getattr(Reading, name):
            raise UserError(f"{name}: {path} is {what}; leave it out")


def values_of(mask: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    """A label map of any number type as values of objects; 255 alone is object 1.

    Raises:
        UserError: It has other values than an object may have.
    """
    low, high = mask.min(initial=0), mask.max(initial=0)
    if low < 0 or high > ONLY_OBJECT or not np.array_equal(mask, np.rint(mask)):
        raise UserError(f"{path}: its values are not those of objects, 0 to {MAX_OBJECTS}")
    values = mask.astype(np.uint8)
    if high < ONLY_OBJECT:
        return values
    if ((values != 0) & (values != ONLY_OBJECT)).any():
        raise UserError(
            f"{path}: is neither a mask of 0 and {ONLY_OBJECT} nor one of objects 1 to"
            f" {MAX_OBJECTS}; are its edges soft?"
        )
    return (values > 0).astype(np.uint8)
