"""ACDC, cine MRI of the heart (Bernard et al. 2018, doi:10.1109/TMI.2018.2837502).

`training/patient001/patient001_frame01.nii.gz` has its labels in `patient001_frame01_gt.nii.gz`;
two frames, end of diastole and end of systole, are labelled. The patient is the group, `Group` in
`Info.cfg` the class; a folder `testing` is the split test. Weight and height are not read.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from data_prep.layouts._find import find_files
from data_prep.options import ShardSegConfig
from data_prep.readers.nifti import read_labelled
from data_prep.records import Reference, Sample, Source

LABELS = {"right ventricle": [1], "myocardium": [2], "left ventricle": [3]}
LABEL_FILE = re.compile(r"(patient\d+)_frame\d+_gt\.nii(?:\.gz)?")


def segmentation(config: ShardSegConfig) -> Source:
    """One reference for each labelled frame."""
    root = config.root()
    references = []
    for name in find_files(root):
        path = PurePosixPath(name)
        if match := LABEL_FILE.fullmatch(path.name):
            references.append(
                Reference(
                    (path.parent / path.name.replace("_gt.", ".")).as_posix(),
                    group=match[1],
                    label=_group(root / path.parent / "Info.cfg"),
                    masks=(name,),
                    split="test" if "testing" in path.parts else "train",
                )
            )
    read = partial(_read, root=root, config=config)
    return Source(config.layout, references, read, config.recipe(), LABELS)


def _group(path: Path) -> str | None:
    if not path.is_file():
        return None
    match = re.search(r"^Group:\s*(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else None


def _read(reference: Reference, root: Path, config: ShardSegConfig) -> Iterator[Sample]:
    yield read_labelled(root / reference.path, root / reference.masks[0], config, "MR")
