"""Medical Segmentation Decathlon and nnU-Net folders: imagesTr, labelsTr and dataset.json.

Labels are read from `{"0": "background", "1": "liver"}` (MSD), from
`{"background": 0, "liver": 1}` or from regions `{"whole tumour": [1, 2, 3]}` (nnU-Net v2).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_prep.common.errors import UserError
from data_prep.layouts.base import LabelledVolumes
from data_prep.readers.nifti import read_labelled
from data_prep.records import Reference, Sample

SUFFIXES = (".nii.gz", ".nii")
SPLITS = {"train": "Tr", "val": "Va", "test": "Ts"}


@dataclass(frozen=True, kw_only=True)
class NnUnet(LabelledVolumes):
    """Volumes with label maps; the case is the group, and volumes stay whole."""

    summary = "Medical Segmentation Decathlon and nnU-Net folders; AMOS22"
    tree = """
dataset.json                   labels and modalities
imagesTr/case_0000.nii.gz      or imagesTr/case.nii.gz
labelsTr/case.nii.gz
imagesVa, labelsVa, imagesTs, labelsTs   where they are there, the splits val and test
"""

    channel: int = 0
    """Which channel of a multi-channel or 4D image is read."""

    def targets(self) -> dict[str, list[int]]:
        """The targets of dataset.json."""
        return read_labels(self._document.get("labels"), self.input / "dataset.json")

    def references(self) -> list[Reference]:
        """One reference for each labelled case, which is its group.

        Raises:
            UserError: No labelled case, a case without its image, or labels that are not NIfTI.
        """
        root = self.root()
        self.targets()  # refused here, before any file is read
        references = []
        for split, part in SPLITS.items():
            for path in sorted((root / f"labels{part}").glob("[!.]*")):
                suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
                if suffix is None:
                    raise UserError(f"{path}: is not NIfTI; layout nnunet reads .nii and .nii.gz")
                case = path.name.removesuffix(suffix)
                image = _image(root / f"images{part}", case, path, self.channel)
                references.append(
                    Reference(
                        image.relative_to(root).as_posix(),
                        group=case,
                        masks=(path.relative_to(root).as_posix(),),
                        split=split,
                    )
                )
        if not any(reference.split == "train" for reference in references):
            raise UserError(f"{root / 'labelsTr'}: holds no label file")
        return references

    def read(self, reference: Reference) -> Iterator[Sample]:
        """The volume with its label map."""
        # A file `case_0001` holds one channel; which one is in its name.
        image, label = self.input / reference.path, self.input / reference.masks[0]
        modality = _modality(self._document, self.channel)
        yield read_labelled(image, label, self, modality, self.channel)

    @cached_property
    def _document(self) -> dict[str, Any]:
        path = self.root() / "dataset.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: missing; layout nnunet needs it for the labels") from None
        except ValueError as error:
            raise UserError(f"{path}: is not JSON ({error})") from None


def read_labels(labels: Any, path: Path) -> dict[str, list[int]]:
    """Mask values of each target, from the `labels` of a dataset.json.

    Background and nnU-Net's `ignore` are not targets.

    Raises:
        UserError: They are in none of the three forms.
    """
    targets: dict[str, list[int]] = {}
    try:
        for key, value in labels.items():
            # MSD has value: name, nnU-Net v2 has name: value or name: [values]
            name, values = (value, [int(key)]) if isinstance(value, str) else (key, value)
            values = [values] if isinstance(values, int) else [int(item) for item in values]
            if name.lower() not in ("background", "ignore") and values != [0]:
                targets[name] = values
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"{path}: labels: {labels!r} are not in MSD or nnU-Net form") from None
    if not targets:
        raise UserError(f"{path}: labels: names no target besides the background")
    return targets


def _image(folder: Path, case: str, label: Path, channel: int) -> Path:
    for stem in (f"{case}_{channel:04d}", case):
        for suffix in SUFFIXES:
            image = folder / f"{stem}{suffix}"
            if image.is_file():
                return image
    raise UserError(f"{label}: has no image {case}.nii.gz or {case}_{channel:04d}.nii.gz")


def _modality(document: dict[str, Any], channel: int) -> str | None:
    names = document.get("channel_names") or document.get("modality")
    name = names.get(str(channel)) if isinstance(names, dict) else None
    return "MR" if name == "MRI" else name
