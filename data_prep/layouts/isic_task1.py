"""ISIC challenges 2016 to 2018, lesion boundary segmentation (challenge.isic-archive.com).

`ISIC_0000000.jpg` has its mask in `ISIC_0000000_segmentation.png` (2016: `_Segmentation.png`), in
any folder below the input. The words `Validation` and `Test` in folder names, as the challenges
have them, make the split; superpixel maps are ignored.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from data_prep.layouts._find import find_files
from data_prep.options import ShardSegConfig
from data_prep.readers.images import read_image
from data_prep.readers.masks import read_label_map
from data_prep.records import NotAnImage, Reference, Sample, Source

SUFFIX = "_segmentation"


def segmentation(config: ShardSegConfig) -> Source:
    """One reference for each photograph."""
    root = config.root()
    files = find_files(root)
    masks = {}
    for name in files:
        stem = PurePosixPath(name).stem
        if name.lower().endswith(f"{SUFFIX}.png"):
            masks[stem[: -len(SUFFIX)]] = name
    references = []
    for name in files:
        if name.lower().endswith((".jpg", ".jpeg")):
            stem = PurePosixPath(name).stem
            mask = (masks[stem],) if stem in masks else ()
            references.append(Reference(name, group=stem, masks=mask, split=_split(name)))
    read = partial(_read, root=root, config=config)
    return Source(config.layout, references, read, config.recipe(), {"lesion": [1]})


def _split(name: str) -> str:
    folder = PurePosixPath(name).parent.as_posix().lower()
    match = re.search(r"(?<![a-z])(validation|test)(?![a-z])", folder)
    return {"validation": "val", "test": "test"}[match[1]] if match else "train"


def _read(reference: Reference, root: Path, config: ShardSegConfig) -> Iterator[Sample]:
    if not reference.masks:
        raise NotAnImage("has no mask")
    picture = read_image(root / reference.path, config)
    path = root / reference.masks[0]
    mask = read_label_map(path, config.max_pixels, config.threshold, binary=True)
    meta = {"modality": "dermoscopy"}
    yield Sample(picture.array, mask, encoded=picture.encoded, meta=meta)
