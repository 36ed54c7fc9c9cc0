"""Image data sets that the library `datasets` reads, from the Hub or a local folder, streamed.

The first column of images is read, and the first column of classes gives the label. Each of the
data set's own files is one reference, so its images are in memory together, encoded.
"""

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import datasets
import fsspec

from data_prep.common.errors import UserError
from data_prep.options import ShardConfig
from data_prep.readers.photographs import read_photograph
from data_prep.records import NotAnImage, Reference, Sample, Source, Unreadable

TYPICAL_IMAGES = 512
"""Images expected of a file when shards are filled, if the data set does not tell."""


def pretraining(config: ShardConfig) -> Source:
    """One reference for each file of the data set; its splits are kept.

    Raises:
        UserError: no such data set or subset, or none of its columns holds images.
    """
    if config.input is None:
        raise UserError("input: layout hf needs --input with a folder or a name on the Hub")
    name = str(config.input)
    references = []
    for split, stream in _load(name, config.subset).items():
        _image_column(stream.features, name)
        if config.group_column and config.group_column not in stream.features:
            raise UserError(f"group_column: {name} has no column {config.group_column!r}")
        info = (stream.info.splits or {}).get(split)
        files = stream.num_shards
        records = max(info.num_examples // files, 1) if info else TYPICAL_IMAGES
        references += [
            Reference(split, part=str(number), split=split, records=records)
            for number in range(files)
        ]
    read = partial(_read, name=name, config=config)
    return Source(config.layout, references, read, config.recipe())


@cache
def _load(name: str, subset: str | None) -> dict[str, datasets.IterableDataset]:
    """The splits of a data set, images still encoded."""
    try:
        splits = datasets.load_dataset(name, subset, streaming=True)
    except Exception as error:  # each builder and each file system has errors of its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"input: {name} cannot be loaded by datasets: {reason}") from error
    return {split: _encoded(stream, name) for split, stream in splits.items()}


def _encoded(stream: datasets.IterableDataset, name: str) -> datasets.IterableDataset:
    features = stream.features or stream._resolve_features().features
    column = _image_column(features, name)
    return stream.cast(features).cast_column(column, datasets.Image(decode=False))


def _image_column(features: dict[str, Any], name: str) -> str:
    for column, feature in features.items():
        if isinstance(feature, datasets.Image):
            return column
    raise UserError(f"input: {name} has no column of images, only {', '.join(features)}")


def _read(
    reference: Reference, name: str, config: ShardConfig
) -> Iterator[Sample | NotAnImage | Unreadable]:
    stream = _load(name, config.subset)[reference.path]
    image = _image_column(stream.features, name)
    classes = [key for key, value in stream.features.items() if hasattr(value, "int2str")]
    for number, row in enumerate(stream.shard(stream.num_shards, int(reference.part))):
        group = str(row[config.group_column]) if config.group_column else ""
        try:
            data = _bytes(row[image])
            sample = read_photograph(
                data, config, group=group or f"{reference.path} {reference.part} {number}"
            )
        except (NotAnImage, Unreadable) as error:
            yield error
            continue
        if classes and row[classes[0]] is not None and row[classes[0]] >= 0:
            sample.meta["label"] = stream.features[classes[0]].int2str(row[classes[0]])
        yield sample


def _bytes(value: dict[str, Any] | None) -> bytes:
    if value is None:
        raise NotAnImage("a row without an image")
    if value["bytes"] is not None:
        return value["bytes"]
    with fsspec.open(value["path"]) as file:
        return file.read()
