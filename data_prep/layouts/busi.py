"""BUSI, breast ultrasound (Al-Dhabyani et al. 2020, doi:10.1016/j.dib.2019.104863).

`benign/benign (1).png` has its mask in `benign (1)_mask.png` and, with several lesions, in
`benign (1)_mask_1.png` and so on; `normal` images have an empty mask. The folder is the class.
Patients are not published, so each image is a group of its own.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from data_prep.layouts._find import find_files
from data_prep.options import ShardSegConfig
from data_prep.readers.images import read_image
from data_prep.readers.masks import read_union
from data_prep.records import NotAnImage, Reference, Sample, Source

MASK = re.compile(r"(.+)_mask(?:_\d+)?\.png")


def segmentation(config: ShardSegConfig) -> Source:
    """One reference for each image, with all of its masks."""
    root = config.root()
    images: list[str] = []
    masks: dict[str, list[str]] = defaultdict(list)
    for name in find_files(root):
        if match := MASK.fullmatch(name):
            masks[f"{match[1]}.png"].append(name)
        elif name.lower().endswith(".png"):
            images.append(name)
    references = [
        Reference(
            name,
            group=name,
            label=PurePosixPath(name).parent.name or None,
            masks=tuple(masks[name]),
        )
        for name in images
    ]
    read = partial(_read, root=root, config=config)
    return Source(config.layout, references, read, config.recipe(), {"lesion": [1]})


def _read(reference: Reference, root: Path, config: ShardSegConfig) -> Iterator[Sample]:
    if not reference.masks:
        raise NotAnImage("has no mask")
    picture = read_image(root / reference.path, config)
    paths = [root / name for name in reference.masks]
    mask = read_union(paths, config.max_pixels, config.threshold)
    meta = {"modality": "US"}
    yield Sample(picture.array, mask, encoded=picture.encoded, meta=meta)
