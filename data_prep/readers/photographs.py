"""One image file as one record of stage one."""

from pathlib import Path

from data_prep.options import ShardConfig
from data_prep.readers.images import read_image
from data_prep.records import NotAnImage, Sample


def read_photograph(
    source: Path | bytes, config: ShardConfig, crop_border: bool = False, group: str = ""
) -> Sample:
    """Read an image file, no larger than `config.max_size`.

    Raises:
        NotAnImage: if a side is shorter than `config.min_size`.
        Unreadable: see `read_image`.
    """
    picture = read_image(source, config, config.max_size, crop_border)
    height, width = picture.array.shape[:2]
    if min(height, width) < config.min_size:
        raise NotAnImage(f"{height} x {width} pixels are smaller than min_size")
    return Sample(picture.array, encoded=picture.encoded, group=group)
