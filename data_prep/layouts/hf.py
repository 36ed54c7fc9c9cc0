"""Image data sets that the library `datasets` reads, from the Hub or a local folder, streamed.

The first column of images is read, and the first column of classes gives the label. Each of the
data set's own files is one reference, so its images are in memory together, encoded.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import fsspec

from data_prep.common.errors import UserError
from data_prep.common.messages import one_line
from data_prep.layouts.base import Layout, Records
from data_prep.options import PhotographOptions
from data_prep.readers.photographs import read_photograph
from data_prep.records import NotAnImage, Reference, Unreadable

if TYPE_CHECKING:
    import datasets

TYPICAL_IMAGES = 512
"""Images expected of a file when shards are filled, if the data set does not say."""


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Layout, PhotographOptions):
    """Image data sets of the library `datasets`; their splits are kept."""

    stage = "pretraining"
    summary = "any image data set that the library `datasets` reads"
    groups_in_files = True
    tree = """
--input org/name      a data set on the Hugging Face Hub
--input folder/       or a local folder that `datasets.load_dataset` reads
"""

    input: str
    """Name on the Hub, or a local folder."""
    subset: str | None = None
    """Configuration of the data set, where it has several."""
    group_column: str = ""
    """Column that names the patient; without it each image is a group of its own."""

    def references(self) -> list[Reference]:
        """One reference for each file of the data set.

        Raises:
            UserError: No such data set or subset, or no column that is needed.
        """
        references = []
        for split, stream in _load(self.input, self.subset).items():
            _image_column(stream.features, self.input)
            if self.group_column and self.group_column not in stream.features:
                raise UserError(f"group_column: {self.input} has no column {self.group_column!r}")
            info = (stream.info.splits or {}).get(split)
            files = stream.num_shards
            records = max(info.num_examples // files, 1) if info else TYPICAL_IMAGES
            references += [
                Reference(split, part=str(file), split=split, records=records)
                for file in range(files)
            ]
        return references

    def read(self, reference: Reference) -> Records:
        """The images of one file."""
        stream = _load(self.input, self.subset)[reference.path]
        image = _image_column(stream.features, self.input)
        classes = [name for name, kind in stream.features.items() if hasattr(kind, "int2str")]
        rows = stream.shard(stream.num_shards, int(reference.part))
        for index, row in enumerate(rows):
            group = str(row[self.group_column]) if self.group_column else ""
            try:
                sample = read_photograph(
                    _bytes(row[image]),
                    self,
                    group=group or f"{reference.path} {reference.part} {index}",
                )
            except (NotAnImage, Unreadable) as error:
                yield error
                continue
            if classes and row[classes[0]] is not None and row[classes[0]] >= 0:
                sample.meta["label"] = stream.features[classes[0]].int2str(row[classes[0]])
            yield sample


@cache
def _load(name: str, subset: str | None) -> dict[str, "datasets.IterableDataset"]:
    """The splits of a data set, images still encoded."""
    import datasets

    try:
        splits = datasets.load_dataset(name, subset, streaming=True)
    except Exception as error:  # each builder and each file system raises other errors
        reason = str(error).splitlines()[0] if str(error) else one_line(error)
        raise UserError(f"input: {name} cannot be loaded by datasets: {reason}") from error
    return {split: _encoded(stream, name) for split, stream in splits.items()}


def _encoded(stream: "datasets.IterableDataset", name: str) -> "datasets.IterableDataset":
    import datasets

    features = stream.features or stream._resolve_features().features
    column = _image_column(features, name)
    return stream.cast(features).cast_column(column, datasets.Image(decode=False))


def _image_column(features: dict[str, Any], name: str) -> str:
    import datasets

    for column, feature in features.items():
        if isinstance(feature, datasets.Image):
            return column
    raise UserError(f"input: {name} has no column of images, only {', '.join(features)}")


def _bytes(value: dict[str, Any] | None) -> bytes:
    if value is None:
        raise NotAnImage("a row without an image")
    if value["bytes"] is not None:
        return value["bytes"]
    with fsspec.open(value["path"]) as file:
        return file.read()
