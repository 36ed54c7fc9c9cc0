"""Tables of the ISIC archive: which lesion, or which patient, an image shows.

| table                            | image          | lesion, patient            |
|----------------------------------|----------------|----------------------------|
| HAM10000_metadata, .csv or .tab  | `image_id`     | `lesion_id`                |
| bcn_20k_train.csv (BCN20000)     | `bcn_filename` | `lesion_id`                |
| metadata.csv of the archive      | `isic_id`      | `lesion_id`, `patient_id`  |
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from data_prep.layouts._tables import read_table

ISIC_IMAGES = ("image_id", "bcn_filename", "isic_id")
ISIC_GROUPS = ("patient_id", "lesion_id")
HAM_TABLE = "HAM10000_metadata"
"""Published with and without a suffix."""
ISIC_TABLES = (HAM_TABLE, "bcn_20k_train", "metadata")


def isic_rows(
    root: Path, files: Iterable[str], any_name: bool = False
) -> dict[str, dict[str, str]]:
    """Row of each image, by its name without suffix, in the ISIC archive's tables among `files`.

    Args:
        any_name: Read tables of other names than the published ones too.
    """
    rows: dict[str, dict[str, str]] = {}
    for name in files:
        path = PurePosixPath(name)
        named_as_table = path.suffix.lower() in (".csv", ".tab") or path.name == HAM_TABLE
        if named_as_table and (any_name or path.stem in ISIC_TABLES):
            for row in read_table(root / name):
                if image := first_value(row, ISIC_IMAGES):
                    rows.setdefault(PurePosixPath(image).stem, {}).update(row)
    return rows


def isic_group(row: Mapping[str, str] | None, stem: str) -> str:
    """The patient of a row, else the lesion, which may be in several images, else `stem`."""
    return first_value(row or {}, ISIC_GROUPS) or stem


def first_value(row: Mapping[str, str], columns: Sequence[str]) -> str | None:
    """The first of some columns that is not empty."""
    return next((row[name] for name in columns if row.get(name)), None)
