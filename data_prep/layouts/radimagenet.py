"""RadImageNet: CT, MR and ultrasound images (Mei et al. 2022, doi:10.1148/ryai.210315).

Patients are not published, so each image is a group.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_prep.common.errors import UserError
from data_prep.layouts._find import find_files, first_folder_off
from data_prep.layouts._tables import read_table
from data_prep.layouts.base import FolderLayout
from data_prep.options import PhotographOptions
from data_prep.readers.photographs import read_photograph
from data_prep.records import Reference, Sample

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class RadImageNet(FolderLayout, PhotographOptions):
    """CT, MR and ultrasound images; modality, anatomy and pathology together are the class."""

    stage = "pretraining"
    summary = "RadImageNet: 1.35 million CT, MR and ultrasound images"
    tree = """
radiology_ai/CT/abd/normal/1.png   modality, anatomy, pathology
RadiologyAI_train.csv              column filename; with _val.csv and _test.csv the split. Without
                                   tables every PNG is in train
"""

    def references(self) -> list[Reference]:
        """One reference for each image that the tables list, or for each PNG below the input.

        Raises:
            UserError: A table without file names, or with names that are not below the input.
        """
        root = self.root()
        listed = [_reference(name, split) for split in SPLITS for name in _listed(root, split)]
        return listed or [
            _reference(name, "train") for name in find_files(root) if name.lower().endswith(".png")
        ]

    def read(self, reference: Reference) -> Iterator[Sample]:
        """The image."""
        sample = read_photograph(self.input / reference.path, self)
        folders = PurePosixPath(reference.path).parent.parts
        sample.meta["modality"] = folders[-3] if len(folders) >= 3 else None
        yield sample


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
