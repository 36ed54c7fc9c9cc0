"""BraTS, gliomas in four MR sequences (Menze et al. 2015, doi:10.1109/TMI.2014.2377694).

The enhancing tumour is 4 until 2021 and 3 since 2023; neither value means anything else.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from data_prep.common.errors import UserError
from data_prep.layouts.base import LabelledVolumes
from data_prep.readers.nifti import read_labelled
from data_prep.records import Reference, Sample

SEQUENCES = {"_": ("flair", "t1", "t1ce", "t2"), "-": ("t2f", "t1n", "t1c", "t2w")}
LABELS = {
    "whole tumour": [1, 2, 3, 4],
    "tumour core": [1, 3, 4],
    "enhancing tumour": [3, 4],
}
LABEL_FILE = re.compile(r"(.+)([_-])seg(\.nii(?:\.gz)?)")


@dataclass(frozen=True, kw_only=True)
class Brats(LabelledVolumes):
    """Gliomas in one of four MR sequences; timepoints of a patient are one group."""

    summary = "BraTS: gliomas in MRI"
    tree = """
BraTS20_Training_001/BraTS20_Training_001_flair.nii.gz   and _t1, _t1ce, _t2
BraTS20_Training_001/BraTS20_Training_001_seg.nii.gz     labels
  or, since 2023:
BraTS-GLI-00000-000/BraTS-GLI-00000-000-t2f.nii.gz       and -t1n, -t1c, -t2w
BraTS-GLI-00000-000/BraTS-GLI-00000-000-seg.nii.gz       labels
"""

    channel: int = 0
    """Sequence, 0 to 3: FLAIR, T1, T1 with contrast, T2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.channel < 4:
            raise UserError(f"channel: {self.channel} is not one of 0 to 3, the sequences of BraTS")

    def targets(self) -> dict[str, list[int]]:
        """The three nested regions of the challenge."""
        return LABELS

    def references(self) -> list[Reference]:
        """One reference for each labelled case."""
        references = []
        for path, match in self.matching(LABEL_FILE):
            case, hyphen, suffix = match.groups()
            image = path.parent / f"{case}{hyphen}{SEQUENCES[hyphen][self.channel]}{suffix}"
            patient = case.rpartition("-")[0] if hyphen == "-" else case
            masks = (path.as_posix(),)
            references.append(Reference(image.as_posix(), group=patient, masks=masks))
        return references

    def read(self, reference: Reference) -> Iterator[Sample]:
        """The sequence with its label map."""
        image, label = self.input / reference.path, self.input / reference.masks[0]
        yield read_labelled(image, label, self, "MR")
