"""Image files in folders of any depth."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from data_prep.find import find_files
from data_prep.images import SUFFIXES
from data_prep.options import ShardConfig
from data_prep.photographs import read_photograph
from data_prep.records import Reference, Sample, Source


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
    read = partial(_read, root=root, config=config)
    return Source(config.layout, references, read, config.recipe())


def _read(reference: Reference, root: Path, config: ShardConfig) -> Iterator[Sample]:
    yield read_photograph(root / reference.path, config)
