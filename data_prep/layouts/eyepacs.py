"""EyePACS, fundus photographs graded for diabetic retinopathy (Kaggle, 2015).

`train/10_left.jpeg` and `train/10_right.jpeg` are the eyes of one patient, who is the group.
`trainLabels.csv` (columns `image` and `level`), and for the test images
`retinopathy_solution.csv`, give the class. The camera's black frame is cut off.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from data_prep.layouts._find import find_files
from data_prep.layouts._tables import read_table
from data_prep.options import ShardConfig
from data_prep.readers.photographs import read_photograph
from data_prep.records import Reference, Sample, Source

EYE = re.compile(r"(\d+)_(left|right)")


def pretraining(config: ShardConfig) -> Source:
    """One reference for each eye; those in a folder `test` are the split test."""
    root = config.root()
    files = find_files(root)
    levels: dict[str, str] = {}
    for name in files:
        if name.lower().endswith(".csv"):
            rows = read_table(root / name)
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
    read = partial(_read, root=root, config=config)
    return Source(config.layout, references, read, config.recipe())


def _read(reference: Reference, root: Path, config: ShardConfig) -> Iterator[Sample]:
    sample = read_photograph(root / reference.path, config, crop_border=True)
    sample.meta["modality"] = "fundus"
    yield sample
