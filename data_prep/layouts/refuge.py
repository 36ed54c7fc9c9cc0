"""REFUGE, optic disc and cup in fundus photographs (Orlando et al. 2020,
doi:10.1016/j.media.2019.101570).

Photographs `g0001.jpg` and `n0001.jpg` (training: glaucoma, none), `V0001.jpg` (validation) and
`T0001.jpg` (test) have masks of the same name, `.bmp` or `.png`, in a folder `Disc_Cup_Masks` (in
other copies `Masks` or `gts`). A mask is 0 in the cup, 128 in the rest of the disc, 255 elsewhere.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from data_prep.layouts._find import find_files
from data_prep.options import ShardSegConfig
from data_prep.readers.images import read_image
from data_prep.readers.masks import nearest_level, read_label_map
from data_prep.records import NotAnImage, Reference, Sample, Source

MASK_FOLDERS = {"disc_cup_masks", "masks", "gts"}
SPLITS = {"g": "train", "n": "train", "v": "val", "t": "test"}
CLASSES = {"glaucoma": "glaucoma", "g": "glaucoma", "non-glaucoma": "normal", "n": "normal"}
"""Class by the folder of an image or mask, or by the first letter of its name."""

LEVELS = (255, 128, 0)
"""Grey values of background, rim and cup, which are stored as 0, 1 and 2."""
LABELS = {"optic disc": [1, 2], "optic cup": [2]}


def segmentation(config: ShardSegConfig) -> Source:
    """One reference for each photograph."""
    root = config.root()
    images, masks = [], {}
    for name in find_files(root):
        path = PurePosixPath(name)
        in_masks = any(part.lower() in MASK_FOLDERS for part in path.parts[:-1])
        if in_masks and path.suffix.lower() in (".bmp", ".png"):
            masks[path.stem.lower()] = name
        elif not in_masks and path.suffix.lower() in (".jpg", ".jpeg"):
            images.append(path)
    references = []
    for path in images:
        mask = masks.get(path.stem.lower())
        references.append(
            Reference(
                path.as_posix(),
                group=path.stem,
                label=_class(path, mask),
                masks=() if mask is None else (mask,),
                split=SPLITS.get(path.stem[0].lower(), "train"),
            )
        )
    read = partial(_read, root=root, config=config)
    return Source(config.layout, references, read, config.recipe(), LABELS)


def _class(image: PurePosixPath, mask: str | None) -> str | None:
    folders = [image.parent.name, PurePosixPath(mask or "").parent.name, image.stem[0]]
    return next((CLASSES[name.lower()] for name in folders if name.lower() in CLASSES), None)


def _read(reference: Reference, root: Path, config: ShardSegConfig) -> Iterator[Sample]:
    if not reference.masks:
        raise NotAnImage("has no mask")
    picture = read_image(root / reference.path, config)
    grey = read_label_map(root / reference.masks[0], config.max_pixels, None, binary=False)
    mask = nearest_level(grey, LEVELS)
    yield Sample(picture.array, mask, encoded=picture.encoded, meta={"modality": "fundus"})
