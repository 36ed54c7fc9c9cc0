"""EyePACS, fundus photographs graded for diabetic retinopathy (Kaggle, 2015)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from data_prep.layouts._tables import read_table
from data_prep.layouts.base import FolderLayout
from data_prep.options import PhotographOptions
from data_prep.readers.photographs import read_photograph
from data_prep.records import Reference, Sample

EYE = re.compile(r"(\d+)_(left|right)")


@dataclass(frozen=True, kw_only=True)
class Eyepacs(FolderLayout, PhotographOptions):
    """Fundus photographs without the camera's black frame; both eyes of a patient are one group."""

    stage = "pretraining"
    summary = "EyePACS: fundus photographs, diabetic retinopathy"
    tree = """
train/10_left.jpeg           the two eyes of patient 10
train/10_right.jpeg
test/...                     is the split test
trainLabels.csv              columns image and level, which is the class
retinopathy_solution.csv     the same for the test images
"""

    def references(self) -> list[Reference]:
        """One reference for each eye."""
        files = self.files()
        levels: dict[str, str] = {}
        for name in files:
            if name.lower().endswith(".csv"):
                rows = read_table(self.input / name)
                levels.update(
                    {row["image"]: row["level"] for row in rows if {"image", "level"} <= {*row}}
                )
        references = []
        for name in files:
            path = PurePosixPath(name)
            match = EYE.fullmatch(path.stem)
            if match and path.suffix.lower() in (".jpeg", ".jpg", ".png"):
                level = levels.get(path.stem)
                references.append(
                    Reference(
                        name,
                        group=match[1],
                        label=None if level is None else f"level {level}",
                        split="test" if "test" in path.parts[:-1] else "train",
                    )
                )
        return references

    def read(self, reference: Reference) -> Iterator[Sample]:
        """The photograph, cropped to what is not black."""
        sample = read_photograph(self.input / reference.path, self, crop_border=True)
        sample.meta["modality"] = "fundus"
        yield sample
