"""TN-SCUI 2020, thyroid nodules in ultrasound (tn-scui2020.grand-challenge.org).

Patients are not published, so each image is a group.
"""

from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from data_prep.layouts._tables import read_table
from data_prep.layouts.base import MaskedImages
from data_prep.options import MaskOptions
from data_prep.readers.images import SUFFIXES
from data_prep.readers.masks import read_label_map
from data_prep.records import Reference


@dataclass(frozen=True, kw_only=True)
class TnScui(MaskedImages, MaskOptions):
    """Thyroid ultrasound with nodules."""

    summary = "TN-SCUI 2020: thyroid ultrasound, nodules"
    tree = """
image/0000.PNG   folders image and mask beside each other, anywhere below the input
mask/0000.PNG
train.csv        columns ID (the file's name) and CATE, which is the class
"""
    modality = "US"

    def targets(self) -> dict[str, list[int]]:
        """One target."""
        return {"nodule": [1]}

    def references(self) -> list[Reference]:
        """One reference for each image."""
        files = self.files()
        classes: dict[str, str] = {}
        for name in files:
            if name.lower().endswith(".csv"):
                rows = read_table(self.input / name, ("ID", "CATE"))
                classes.update({row["ID"]: f"CATE {row['CATE']}" for row in rows})
        # the copies of one set differ in the case of their suffixes
        masks = {name.lower(): name for name in files if PurePosixPath(name).parent.name == "mask"}
        references = []
        for name in files:
            path = PurePosixPath(name)
            if path.parent.name == "image" and name.lower().endswith(SUFFIXES):
                mask = masks.get((path.parent.parent / "mask" / path.name).as_posix().lower())
                references.append(
                    Reference(
                        name,
                        group=name,
                        label=classes.get(path.name),
                        masks=() if mask is None else (mask,),
                    )
                )
        return references

    def read_mask(self, reference: Reference, image: np.ndarray) -> np.ndarray:
        """The nodules."""
        path = self.input / reference.masks[0]
        return read_label_map(path, self.max_pixels, self.threshold, binary=True)
