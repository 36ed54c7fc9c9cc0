"""TN-SCUI 2020, thyroid nodules in ultrasound (tn-scui2020.grand-challenge.org).

`image/0000.PNG` has its mask in `mask/0000.PNG`, beside each other in any folder. A CSV file with
columns `ID` (the file's name) and `CATE` gives the class. Patients are not published.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from data_prep.layouts._find import find_files
from data_prep.layouts._tables import read_table
from data_prep.options import ShardSegConfig
from data_prep.readers.images import SUFFIXES, read_image
from data_prep.readers.masks import read_label_map
from data_prep.records import NotAnImage, Reference, Sample, Source


def segmentation(config: ShardSegConfig) -> Source:
    """One reference for each image."""
    root = config.root()
    files = find_files(root)
    classes: dict[str, str] = {}
    for name in files:
        if name.lower().endswith(".csv"):
            rows = read_table(root / name, ("ID", "CATE"))
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
    read = partial(_read, root=root, config=config)
    return Source(config.layout, references, read, config.recipe(), {"nodule": [1]})


def _read(reference: Reference, root: Path, config: ShardSegConfig) -> Iterator[Sample]:
    if not reference.masks:
        raise NotAnImage("has no mask")
    picture = read_image(root / reference.path, config)
    path = root / reference.masks[0]
    mask = read_label_map(path, config.max_pixels, config.threshold, binary=True)
    yield Sample(picture.array, mask, encoded=picture.encoded, meta={"modality": "US"})
