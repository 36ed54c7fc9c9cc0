"""Small pictures of every case, kept by an evaluation so that runs can be shown side by side.

One slice of each target, that in which it is largest: the image as JPEG, and the truth and what was
predicted under each protocol as 1-bit PNG of a few hundred bytes, all in one ZIP file.
"""

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.common.errors import UserError
from data_prep.common.files import atomic_path

INDEX = "pictures.json"


@dataclass(frozen=True)
class Thumbnail:
    """One target of a case, small."""

    case: str
    target: str
    image: NDArray[np.uint8]
    """(h, w) or (h, w, 3)."""
    truth: NDArray[np.bool_]
    """(h, w)."""
    masks: dict[str, NDArray[np.bool_]]
    """(h, w) predictions by protocol."""


def reduce_image(image: NDArray[Any], side: int) -> NDArray[np.uint8]:
    """An image (H, W) or (H, W, 3) whose longest side is at most `side`.

    Args:
        image: Uint8 or uint16, white is the dtype's maximum.
    """
    pixels = (image >> 8).astype(np.uint8) if image.dtype == np.uint16 else image
    return np.asarray(_reduced(Image.fromarray(pixels), side))


def reduce_mask(mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """A mask (H, W) at the size of `reduce_image`: of each new pixel, what most of its area was."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(_reduced(picture, side)) > 127


class ThumbnailWriter:
    """Encodes pictures as they come, to about 10 KB per target of a case, and writes them all."""

    def __init__(self) -> None:
        self._members: dict[str, bytes] = {}
        self._index: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._index)

    def add(self, each: Thumbnail) -> None:
        """Keep the pictures of one target of a case."""
        folder = f"{len(self):05d}"
        image, truth = f"{folder}/image.jpg", f"{folder}/truth.png"
        masks = {name: f"{folder}/{n}.png" for n, name in enumerate(each.masks)}
        self._members[image] = _encoded(Image.fromarray(each.image), "JPEG")
        self._members[truth] = _encoded(Image.fromarray(each.truth), "PNG")
        for name, mask in each.masks.items():
            self._members[masks[name]] = _encoded(Image.fromarray(mask), "PNG")
        names = {"image": image, "truth": truth, "masks": masks}
        self._index.append({"case": each.case, "target": each.target, **names})

    def write(self, path: Path) -> None:
        """Write a ZIP file; the same pictures give the same bytes."""
        members = self._members | {INDEX: json.dumps(self._index, indent=1).encode()}
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
            for name, data in members.items():
                file.writestr(zipfile.ZipInfo(name), data)  # without the time of day


class Thumbnails:
    """The pictures that an evaluation kept, read when they are asked for.

    Raises:
        UserError: The file is not whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as file:
                index = json.loads(file.read(INDEX))
            self._index = {(each["case"], each["target"]): each for each in index}
        except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
            raise self._damaged(error) from None

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._index

    def read(self, case: str, target: str) -> Thumbnail:
        """The pictures of one target of a case.

        Raises:
            KeyError: It is not among them.
            UserError: The file is not whole.
        """
        entry = self._index[case, target]
        try:
            with zipfile.ZipFile(self.path) as file:
                image, truth, *masks = (
                    np.asarray(Image.open(io.BytesIO(file.read(name))))
                    for name in (entry["image"], entry["truth"], *entry["masks"].values())
                )
        except (zipfile.BadZipFile, KeyError, OSError) as error:
            raise self._damaged(error) from None
        named = dict(zip(entry["masks"], masks, strict=True))
        return Thumbnail(case, target, image, truth, named)

    def _damaged(self, error: Exception) -> UserError:
        return UserError(f"{self.path}: cannot be read ({error}); evaluate again, or remove it")


def _reduced(picture: Image.Image, side: int) -> Image.Image:
    factor = side / max(picture.size)
    if factor >= 1:
        return picture
    width, height = (max(1, round(length * factor)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)


def _encoded(picture: Image.Image, form: str) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, quality=85, optimize=True)
    return stream.getvalue()
