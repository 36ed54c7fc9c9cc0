"""The cases of a shard set as a raw data set of nnU-Net."""

from pathlib import Path
from typing import Any

import numpy as np

from data_prep.common.errors import UserError
from data_prep.common.files import new_folder, write_json
from finetune.data.cases import LabelledCases
from finetune.external.encoding import Encoding
from finetune.external.files import PICTURE, VOLUME, is_volume, write_image, write_labels
from finetune.external.score import records_of

FOLDS = 5
"""Folds of nnU-Net's cross-validation."""


class RawData:
    """Cases to train on, and those to segment.

    Attributes:
        volumes: Whether they are volumes, not pictures.
        encoding: Their targets as labels.

    Raises:
        UserError: There are pictures and volumes.
    """

    def __init__(self, train: LabelledCases, test: LabelledCases) -> None:
        self.train, self.test = train, test
        self.encoding = Encoding(train.targets)
        metas = [each.shards.meta(index) for each in (train, test) for index in records_of(each)]
        kinds = {is_volume(meta) for meta in metas}
        if len(kinds) > 1:
            raise UserError(
                f"data.shards: {train.shards.root} holds both pictures and volumes; nnU-Net takes"
                " one kind"
            )
        self.volumes = kinds.pop()
        self._colour = not self.volumes and any(len(meta["size"]) == 3 for meta in metas)
        self._ct = self.volumes and {meta["modality"] for meta in metas} == {"CT"}

    def write(self, path: Path) -> None:
        """Write imagesTr, labelsTr, imagesTs and dataset.json, whole or not at all."""
        train, test = records_of(self.train), records_of(self.test)
        with new_folder(path) as folder:
            for name in ("imagesTr", "labelsTr", "imagesTs"):
                (folder / name).mkdir()
            for index in train:
                record = self.train.shards.record(index)
                assert record.mask is not None
                write_image(record, folder / "imagesTr", self._colour)
                write_labels(self.encoding.encode(record.mask), record, folder / "labelsTr")
            for index in test:
                write_image(self.test.shards.record(index), folder / "imagesTs", self._colour)
            write_json(folder / "dataset.json", self.describe())
        print(f"{path}: {len(train)} cases to train on, {len(test)} to segment", flush=True)

    def describe(self) -> dict[str, Any]:
        """What dataset.json says.

        nnU-Net treats a channel called CT by the intensities of all cases, which is right where
        one window was cut out of all; any other by those of each image.
        """
        fixed = isinstance(self.train.window, list | tuple)
        names = ["red", "green", "blue"]
        if not self._colour:
            names = ["CT" if self._ct and fixed else "grey"]
        return {
            "channel_names": {str(channel): name for channel, name in enumerate(names)},
            **self.encoding.entries,
            "numTraining": len(records_of(self.train)),
            "file_ending": VOLUME if self.volumes else PICTURE,
        }


def split_groups(cases: LabelledCases, seed: int) -> list[list[str]]:
    """Groups of each part of a cross-validation; no parts where there is one group."""
    groups = sorted({cases.shards.meta(index)["group"] for index in records_of(cases)})
    if len(groups) < 2:
        return []
    order = np.random.default_rng([seed]).permutation(groups)
    return [part.tolist() for part in np.array_split(order, min(FOLDS, len(groups)))]


def folds_of(cases: LabelledCases, seed: int) -> list[dict[str, list[str]]]:
    """Keys that each fold trains on and is judged on, as splits_final.json has them."""
    shards = cases.shards
    group_of = {shards.key(index): shards.meta(index)["group"] for index in records_of(cases)}
    return [
        {
            "train": [key for key, group in group_of.items() if group not in part],
            "val": [key for key, group in group_of.items() if group in part],
        }
        for part in split_groups(cases, seed)
    ]
