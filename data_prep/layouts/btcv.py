"""BTCV, abdominal organs in CT (Landman et al. 2015, doi:10.7303/syn3193805)."""

import re
from dataclasses import dataclass

from data_prep.layouts.base import LabelledVolumes
from data_prep.records import Reference

ORGANS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic veins",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)
LABEL_FILE = re.compile(r"label(\d+\.nii(?:\.gz)?)")


@dataclass(frozen=True, kw_only=True)
class Btcv(LabelledVolumes):
    """Abdominal CT with 13 organs; the volume is the group."""

    summary = "BTCV: abdominal CT, 13 organs"
    tree = """
Training/img/img0001.nii.gz
Training/label/label0001.nii.gz   labels 1 to 13
"""
    modality = "CT"

    def targets(self) -> dict[str, list[int]]:
        """The organs in the challenge's order."""
        return {organ: [value] for value, organ in enumerate(ORGANS, start=1)}

    def references(self) -> list[Reference]:
        """One reference for each labelled volume."""
        references = []
        for path, match in self.matching(LABEL_FILE):
            image = path.parent.parent / "img" / f"img{match[1]}"
            masks = (path.as_posix(),)
            references.append(Reference(image.as_posix(), group=match[1], masks=masks))
        return references
