"""Medical Segmentation Decathlon and nnU-Net folders: imagesTr, labelsTr and dataset.json.

Where there are also labelsVa (AMOS22) or labelsTs, they are the splits val and test. Volumes stay
whole. Labels are read from `{"0": "background", "1": "liver"}` (MSD), from
`{"background": 0, "liver": 1}` or from regions `{"whole tumour": [1, 2, 3]}` (nnU-Net v2).
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.common.errors import UserError
from data_prep.options import ShardSegConfig
from data_prep.readers.nifti import read_labelled
from data_prep.records import Reference, Sample, Source

SUFFIXES = (".nii.gz", ".nii")
SPLITS = {"train": "Tr", "val": "Va", "test": "Ts"}


def segmentation(config: ShardSegConfig) -> Source:
    """One reference for each labelled case, which is its group.

    Raises:
        UserError: no dataset.json, no labels in it, no labelled case, a case without its image.
    """
    root = config.root()
    document = _document(root)
    labels = read_labels(document.get("labels"), root / "dataset.json")
    references = []
    for split, part in SPLITS.items():
        for path in sorted((root / f"labels{part}").glob("[!.]*")):
            suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
            if suffix is None:
                raise UserError(f"{path}: is not NIfTI; layout nnunet reads .nii and .nii.gz")
            case = path.name.removesuffix(suffix)
            image = _image(root / f"images{part}", case, path, config.channel)
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
    modality = _modality(document, config.channel)
    read = partial(_read, root=root, config=config, modality=modality)
    return Source(config.layout, references, read, config.recipe(), labels)


def read_labels(labels: Any, path: Path) -> dict[str, list[int]]:
    """Mask values of each target, from the `labels` of a dataset.json.

    Background and nnU-Net's `ignore` are no targets.

    Raises:
        UserError: if they are in none of the three forms.
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
        raise UserError(f"{path}: labels: names no target beside the background")
    return targets


def _document(root: Path) -> dict[str, Any]:
    path = root / "dataset.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; layout nnunet needs it for the labels") from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error})") from None


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


def _read(
    reference: Reference, root: Path, config: ShardSegConfig, modality: str | None
) -> Iterator[Sample]:
    # A file `case_0001` holds one channel; which one is in its name.
    image, label = root / reference.path, root / reference.masks[0]
    yield read_labelled(image, label, config, modality, config.channel)
