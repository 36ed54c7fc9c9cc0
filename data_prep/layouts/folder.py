"""Image files in folders of any depth."""

import re
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from data_prep.layouts._find import find_files
from data_prep.options import ShardConfig
from data_prep.readers.images import SUFFIXES
from data_prep.readers.photographs import read_photograph
from data_prep.records import Reference, Sample, Source

MASK_NAME = re.compile(
    r"(?:.*[^a-z0-9])?(?:masks?|labels?|annotations?|seg|segmentations?|gts?|ground[ _-]?truth)"
    r"(?:tr|ts|[ _-]?\d+)?",
    re.IGNORECASE,
)
"""Stems and folders such as `x_mask_1`, `x-gt`, `labelsTr`, `Part1_GroundTruth`."""


def pretraining(config: ShardConfig) -> Source:
    """One reference for each image file; with `config.class_folders` its folder is its class."""
    root = config.root()
    references = []
    for name in find_files(root):
        if not name.lower().endswith(SUFFIXES):
            continue
        folder = PurePosixPath(name).parent.as_posix()
        label = folder if config.class_folders and folder != "." else None
        references.append(Reference(name, group=name, label=label))
    _warn_of_masks([reference.path for reference in references])
    read = partial(_read, root=root, config=config)
    return Source(config.layout, references, read, config.recipe())


def _warn_of_masks(names: Sequence[str]) -> None:
    """Say how many files look like masks, which stage one would learn to reproduce."""
    masks = [name for name in names if any(map(MASK_NAME.fullmatch, _parts(name)))]
    if masks:
        print(
            f"warning: {len(masks)} of {len(names)} files look like masks, such as {masks[0]}, and"
            " are taken as images; give the folder of the images alone, or use `shard-seg --layout"
            " pairs` for images with masks",
            file=sys.stderr,
        )


def _parts(name: str) -> tuple[str, ...]:
    path = PurePosixPath(name)
    return *path.parts[:-1], path.stem


def _read(reference: Reference, root: Path, config: ShardConfig) -> Iterator[Sample]:
    yield read_photograph(root / reference.path, config)
