"""Images and masks that correspond by name: two patterns with one * each, which is the case."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data_prep.common.errors import UserError
from data_prep.layouts._find import find_files
from data_prep.options import ShardSegConfig
from data_prep.readers.images import read_image
from data_prep.readers.masks import read_label_map
from data_prep.records import Reference, Sample, Source


def segmentation(config: ShardSegConfig) -> Source:
    """One reference for each case that has an image; every one needs a mask.

    Raises:
        UserError: patterns without exactly one *, images without a mask, a group pattern that does
            not fit.
    """
    root = config.root()
    files = find_files(root)
    images = _match(files, config.image, "image")
    masks = _match(files, config.mask, "mask")
    # `a_*.png` as image pattern also fits `a_1_mask.png`, which is the mask of case 1
    images = {case: name for case, name in images.items() if name not in masks.values()}
    if missing := sorted(images.keys() - masks.keys()):
        raise UserError(
            f"mask: {images[missing[0]]} has no mask {config.mask.replace('*', missing[0])}"
            f" ({len(missing)} of {len(images)} images have none)"
        )
    references = [
        Reference(images[case], group=_group(case, config.group), masks=(masks[case],))
        for case in sorted(images)
    ]
    labels = config.labels or {"target": [1]}
    read = partial(_read, root=root, config=config)
    return Source(config.layout, references, read, config.recipe(), labels)


def _match(files: list[str], pattern: str, name: str) -> dict[str, str]:
    """File of each case: what the * of `pattern` stands for in its path."""
    if pattern.count("*") != 1:
        raise UserError(f"{name}: {pattern!r} is no pattern with one *, such as {name}s/*.png")
    before, after = pattern.split("*")
    expression = re.compile(f"{re.escape(before)}([^/]+){re.escape(after)}")
    found = {match[1]: file for file in files if (match := expression.fullmatch(file))}
    if not found:
        raise UserError(f"{name}: no file below the input fits {pattern!r}")
    return found


def _group(case: str, pattern: str) -> str:
    if not pattern:
        return case
    try:
        match = re.search(pattern, case)
        if match is not None:
            return match[1]
    except (re.error, IndexError) as error:
        raise UserError(f"group: {pattern!r} is no expression with a group ({error})") from error
    raise UserError(f"group: {pattern!r} does not fit the case {case!r}")


def _read(reference: Reference, root: Path, config: ShardSegConfig) -> Iterator[Sample]:
    picture = read_image(root / reference.path, config)
    mask = read_label_map(
        root / reference.masks[0], config.max_pixels, config.threshold, binary=config.labels is None
    )
    yield Sample(picture.array, mask, encoded=picture.encoded)
