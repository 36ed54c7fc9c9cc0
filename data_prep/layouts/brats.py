"""BraTS, gliomas in four MR sequences (Menze et al. 2015, doi:10.1109/TMI.2014.2377694).

`BraTS20_Training_001/BraTS20_Training_001_flair.nii.gz` and `_t1`, `_t1ce`, `_t2` have their labels
in `_seg`; since 2023 `BraTS-GLI-00000-000-t2f.nii.gz` and `-t1n`, `-t1c`, `-t2w`, in `-seg`.
`--channel` 0 to 3 chooses the sequence in that order. Timepoints of a patient, `-000` and `-001`,
are one group. The enhancing tumour is 4 until 2021 and 3 since 2023; neither means anything else.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from data_prep.common.errors import UserError
from data_prep.layouts._find import find_files
from data_prep.options import ShardSegConfig
from data_prep.readers.nifti import read_labelled
from data_prep.records import Reference, Sample, Source

SEQUENCES = {"_": ("flair", "t1", "t1ce", "t2"), "-": ("t2f", "t1n", "t1c", "t2w")}
LABELS = {
    "whole tumour": [1, 2, 3, 4],
    "tumour core": [1, 3, 4],
    "enhancing tumour": [3, 4],
}
LABEL_FILE = re.compile(r"(.+)([_-])seg(\.nii(?:\.gz)?)")


def segmentation(config: ShardSegConfig) -> Source:
    """One reference for each labelled case.

    Raises:
        UserError: if `config.channel` is none of the four sequences.
    """
    root = config.root()
    if not 0 <= config.channel < 4:
        raise UserError(f"channel: {config.channel} is not one of 0 to 3, the sequences of BraTS")
    references = []
    for name in find_files(root):
        path = PurePosixPath(name)
        if match := LABEL_FILE.fullmatch(path.name):
            case, hyphen, suffix = match.groups()
            image = path.parent / f"{case}{hyphen}{SEQUENCES[hyphen][config.channel]}{suffix}"
            patient = case.rpartition("-")[0] if hyphen == "-" else case
            references.append(Reference(image.as_posix(), group=patient, masks=(name,)))
    read = partial(_read, root=root, config=config)
    return Source(config.layout, references, read, config.recipe(), LABELS)


def _read(reference: Reference, root: Path, config: ShardSegConfig) -> Iterator[Sample]:
    yield read_labelled(root / reference.path, root / reference.masks[0], config, "MR")
