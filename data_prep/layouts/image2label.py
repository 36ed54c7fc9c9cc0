"""SAM-Med2D's lists of images and masks (Cheng et al. 2023, arXiv 2308.16184).

`image2label_train.json` maps each image to its masks, `label2image_test.json` each mask to its
image. A mask `<image>_<target>_<number>.png` is binary; masks of one target and image are united.
Masks that overlap cannot share a label map: such an image becomes several records, each with the
targets that fit.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from data_prep.common.errors import UserError
from data_prep.layouts._find import first_folder_off
from data_prep.options import ShardSegConfig
from data_prep.readers.images import read_image
from data_prep.readers.masks import read_union
from data_prep.records import Reference, Sample, Source, Unreadable

TRAIN, TEST = "image2label_train.json", "label2image_test.json"


def segmentation(config: ShardSegConfig) -> Source:
    """One reference for each image of the two lists.

    Raises:
        UserError: neither list is there, one is of another form, or a file it names is missing.
    """
    root = config.root()
    if not (root / TRAIN).is_file() and not (root / TEST).is_file():
        raise UserError(f"input: {root} has neither {TRAIN} nor {TEST}")
    references = []
    targets: set[str] = set()
    for split, masks_of in (("train", _train(root / TRAIN)), ("test", _test(root / TEST))):
        for image, masks in sorted(masks_of.items()):
            targets.update(target_of(mask, image) for mask in masks)
            path = _locate(root, image)
            paths = tuple(_locate(root, mask) for mask in sorted(masks))
            references.append(Reference(path, group=path, masks=paths, split=split))
    labels = {name: [value] for value, name in enumerate(sorted(targets), start=1)}
    read = partial(_read, root=root, config=config, labels=labels)
    return Source(config.layout, references, read, config.recipe(), labels)


def target_of(mask: str, image: str) -> str:
    """What a mask shows: its name without that of its image and without its number."""
    name = PurePosixPath(mask).stem.removeprefix(PurePosixPath(image).stem).strip("_")
    return re.sub(r"_\d+$", "", name).replace("_", " ") or "target"


def _train(path: Path) -> dict[str, list[str]]:
    images = _load(path)
    if not all(isinstance(masks, list) for masks in images.values()):
        raise UserError(f"{path}: is no map from images to lists of masks")
    return images


def _test(path: Path) -> dict[str, list[str]]:
    images: dict[str, list[str]] = defaultdict(list)
    for mask, image in _load(path).items():
        if not isinstance(image, str):
            raise UserError(f"{path}: is no map from masks to images")
        images[image].append(mask)
    return images


def _load(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error})") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: is no map from files to files")
    return document


def _locate(root: Path, name: str) -> str:
    (path,) = first_folder_off(root, [name])
    if not (root / path).is_file():
        raise UserError(f"input: {name}, which the list names, is not below {root}")
    return path


def _read(
    reference: Reference, root: Path, config: ShardSegConfig, labels: dict[str, list[int]]
) -> Iterator[Sample]:
    picture = read_image(root / reference.path, config)
    paths = defaultdict(list)
    for name in reference.masks:
        paths[target_of(name, reference.path)].append(root / name)
    maps: list[np.ndarray] = []
    for target, files in sorted(paths.items()):
        mask = read_union(files, config.max_pixels, config.threshold) > 0
        if mask.shape != picture.array.shape[:2]:
            raise Unreadable(f"a mask of {mask.shape} for an image of {picture.array.shape[:2]}")
        fitting = next((layer for layer in maps if not layer[mask].any()), None)
        if fitting is None:
            fitting = np.zeros(mask.shape, np.uint8 if len(labels) < 256 else np.uint16)
            maps.append(fitting)
        fitting[mask] = labels[target][0]
    for layer in maps:
        yield Sample(picture.array, layer, encoded=picture.encoded)
