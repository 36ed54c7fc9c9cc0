"""RadImageNet: CT, MR and ultrasound images (Mei et al. 2022, doi:10.1148/ryai.210315).

`radiology_ai/CT/abd/normal/*.png`: modality, anatomy and pathology, which together are the class.
`RadiologyAI_train.csv`, `_val.csv` and `_test.csv`, with a column `filename`, make the split;
without them every image is in train. Patients are not published, so each image is a group.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from data_prep.common.errors import UserError
from data_prep.layouts._find import find_files, first_folder_off
from data_prep.layouts._tables import read_table
from data_prep.options import ShardConfig
from data_prep.readers.photographs import read_photograph
from data_prep.records import Reference, Sample, Source

SPLITS = ("train", "val", "test")


def pretraining(config: ShardConfig) -> Source:
    """One reference for each image that the tables list, or for each PNG below the input.

    Raises:
        UserError: a table without file names, or with names that are not below the input.
    """
    root = config.root()
    references = [_reference(name, split) for split in SPLITS for name in _listed(root, split)] or [
        _reference(name, "train") for name in find_files(root) if name.lower().endswith(".png")
    ]
    read = partial(_read, root=root, config=config)
    return Source(config.layout, references, read, config.recipe())


def _listed(root: Path, split: str) -> list[str]:
    # looked for at the top only: the folders below hold a million files
    tables = [*root.glob(f"*_{split}.csv"), *root.glob(f"*/*_{split}.csv")]
    if len(tables) > 1:
        raise UserError(f"input: {tables[0]} and {tables[1]} both list the {split} split")
    names = [row["filename"] for path in tables for row in read_table(path, ("filename",))]
    return first_folder_off(root, names)


def _reference(name: str, split: str) -> Reference:
    folders = PurePosixPath(name).parent.parts[-3:]
    return Reference(name, group=name, label=" ".join(folders) or None, split=split)


def _read(reference: Reference, root: Path, config: ShardConfig) -> Iterator[Sample]:
    sample = read_photograph(root / reference.path, config)
    folders = PurePosixPath(reference.path).parent.parts
    sample.meta["modality"] = folders[-3] if len(folders) >= 3 else None
    yield sample
