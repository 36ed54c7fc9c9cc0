"""ACDC, cine MRI of the heart (Bernard et al. 2018, doi:10.1109/TMI.2018.2837502).

Two frames of each patient, end of diastole and end of systole, are labelled. Weight and height in
`Info.cfg` are not read.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from data_prep.layouts.base import LabelledVolumes
from data_prep.records import Reference

LABEL_FILE = re.compile(r"(patient\d+)_frame\d+_gt\.nii(?:\.gz)?")
LABELS = {"right ventricle": [1], "myocardium": [2], "left ventricle": [3]}


@dataclass(frozen=True, kw_only=True)
class Acdc(LabelledVolumes):
    """Cine MRI of the heart with three labels; the patient is the group."""

    summary = "ACDC: cine MRI of the heart, ventricles and myocardium"
    tree = """
training/patient001/patient001_frame01.nii.gz
training/patient001/patient001_frame01_gt.nii.gz   labels of that frame
training/patient001/Info.cfg                       `Group` is the class
testing/...                                        is the split test
"""
    modality = "MR"

    def targets(self) -> dict[str, list[int]]:
        """The three structures."""
        return LABELS

    def references(self) -> list[Reference]:
        """One reference for each labelled frame."""
        return [
            Reference(
                (path.parent / path.name.replace("_gt.", ".")).as_posix(),
                group=match[1],
                label=_group(self.input / path.parent / "Info.cfg"),
                masks=(path.as_posix(),),
                split="test" if "testing" in path.parts else "train",
            )
            for path, match in self.matching(LABEL_FILE)
        ]


def _group(path: Path) -> str | None:
    if not path.is_file():
        return None
    match = re.search(r"^Group:\s*(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else None
