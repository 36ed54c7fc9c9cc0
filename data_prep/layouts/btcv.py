"""BTCV, abdominal organs in CT (Landman et al. 2015, doi:10.7303/syn3193805).

`Training/img/img0001.nii.gz` has its labels in `Training/label/label0001.nii.gz`.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from data_prep.layouts._find import find_files
from data_prep.options import ShardSegConfig
from data_prep.readers.nifti import read_labelled
from data_prep.records import Reference, Sample, Source

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


def segmentation(config: ShardSegConfig) -> Source:
    """One reference for each labelled volume."""
    root = config.root()
    references = []
    for name in find_files(root):
        path = PurePosixPath(name)
        if match := LABEL_FILE.fullmatch(path.name):
            image = path.parent.parent / "img" / f"img{match[1]}"
            references.append(Reference(image.as_posix(), group=match[1], masks=(name,)))
    labels = {organ: [value] for value, organ in enumerate(ORGANS, start=1)}
    read = partial(_read, root=root, config=config)
    return Source(config.layout, references, read, config.recipe(), labels)


def _read(reference: Reference, root: Path, config: ShardSegConfig) -> Iterator[Sample]:
    yield read_labelled(root / reference.path, root / reference.masks[0], config, "CT")
