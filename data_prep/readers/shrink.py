"""Images and their label maps, made smaller together."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from data_prep.format.codec import decode, encode_jpeg
from data_prep.readers.images import shrink
from data_prep.records import NotAnImage, Reference, Sample, Unreadable


@dataclass(frozen=True)
class Shrunk:
    """Reads references as `read`, and makes large samples smaller. (Picklable.)"""

    read: Callable[[Reference], Iterable[Sample | NotAnImage | Unreadable]]
    max_size: int
    """Longest height or width in pixels."""

    def __call__(self, reference: Reference) -> Iterator[Sample | NotAnImage | Unreadable]:
        """The samples of a reference."""
        for sample in self.read(reference):
            yield shrink_sample(sample, self.max_size) if isinstance(sample, Sample) else sample


def shrink_sample(sample: Sample, max_size: int) -> Sample:
    """A sample whose height and width are at most `max_size`; a volume keeps its depth.

    Images are scaled by Lanczos resampling, as by `read_image`. A new pixel of the label map takes
    the value that lies under its centre, so that no value is invented and areas stay in proportion;
    what is thinner than a new pixel may be lost. The spacing grows as the pixels do.
    """
    image, mask = sample.image, sample.mask
    plane = image.shape[1:3] if sample.volume else image.shape[:2]
    if max(plane) <= max_size or (mask is not None and mask.shape[-2:] != plane):
        return sample  # the writer refuses a mask of another shape
    slices = [_shrunk(each, max_size) for each in (image if sample.volume else [image])]
    rows, columns = (nearest_pixels(*sides) for sides in zip(plane, slices[0].shape, strict=False))
    small = np.stack(slices) if sample.volume else slices[0]
    encoded = None
    if sample.encoded is not None and sample.encoded[0] == "jpg":
        encoded = ("jpg", encode_jpeg(small))
        small = decode(*encoded)
    meta = dict(sample.meta)
    if meta.get("spacing"):
        ratios = [1.0] * (len(meta["spacing"]) - 2) + [
            plane[0] / len(rows),
            plane[1] / len(columns),
        ]
        pairs = zip(meta["spacing"], ratios, strict=True)
        meta["spacing"] = [round(side * ratio, 6) for side, ratio in pairs]
    if mask is not None:
        mask = mask[..., rows[:, None], columns]
    return replace(sample, image=small, mask=mask, encoded=encoded, meta=meta)


def nearest_pixels(old: int, new: int) -> np.ndarray:
    """(new,) int64: for each of `new` pixels, which of `old` pixels lies under its centre.

    Found in whole numbers, so that rounding cannot move it.
    """
    return (2 * np.arange(new) + 1) * old // (2 * new)


def _shrunk(image: np.ndarray, max_size: int) -> np.ndarray:
    small = np.asarray(shrink(Image.fromarray(image), max_size))
    if image.dtype == np.uint8:
        return small
    return small.round().clip(0, np.iinfo(image.dtype).max).astype(image.dtype)
