"""One image file as one record of stage one."""

from pathlib import Path

from data_prep.options import PhotographOptions
from data_prep.readers.images import read_image
from data_prep.records import NotAnImage, Sample


def read_photograph(
    source: Path | bytes, options: PhotographOptions, crop_border: bool = False, group: str = ""
) -> Sample:
    """Read an image file, no larger than `options.max_size`.

    Raises:
        NotAnImage: A side is shorter than `options.min_size`.
        Unreadable: See `read_image`.
    """
    picture = read_image(source, options, options.max_size, crop_border)
    height, width = picture.array.shape[:2]
    if min(height, width) < options.min_size:
        raise NotAnImage(f"{height} x {width} pixels are smaller than min_size")
    return Sample(picture.array, encoded=picture.encoded, group=group)
