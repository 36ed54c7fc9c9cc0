"""Options of `python -m finetune simclr`."""

from dataclasses import dataclass
from typing import ClassVar

from data_prep.common.components import Component, component
from data_prep.common.errors import UserError
from finetune.config import check_image_size
from pretrain.engine.run_options import RunOptions


@dataclass(kw_only=True)
class UnlabelledData:
    """Unlabelled images."""

    shards: str | list[str]
    """Folder or URL of a shard set written by `python -m data_prep shard`, or a list of several."""
    split: str = "train"
    """Split of the shard sets."""
    shuffle_shards: int = 4
    """Shards among which samples are shuffled."""
    workers: int = 4
    """Processes that read and change images."""

    def __post_init__(self) -> None:
        if self.shuffle_shards < 1 or self.workers < 0:
            raise UserError("data.shuffle_shards must be 1 or more, and data.workers 0 or more")


@dataclass(kw_only=True)
class SimclrConfig(RunOptions):
    """Pretrain the encoder of a network without SAM, on unlabelled images, by SimCLR.

    Its run folder is what `--encoder` of finetune/train.py names for that network.
    """

    MAY_CHANGE: ClassVar[tuple[str, ...]] = (*RunOptions.MAY_CHANGE, "data.shards")

    data: UnlabelledData
    """The images."""
    network: Component = component("finetune.model.network.Network", "finetune.baselines.UNet")
    """The network, which must have a part to pretrain, as UNet has."""
    image_size: int = 224
    """Side of the square views in pixels, a multiple of 16."""
    temperature: float = 0.5
    """Divides similarities in the loss."""
    min_scale: float = 0.08
    """Smallest share of the image's area that a view covers."""
    jitter: float = 1.0
    """Strength of the change of colours and brightness."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_image_size(self.image_size, "image_size")
        if not self.temperature > 0:
            raise UserError(f"temperature is {self.temperature}; it must be positive")
        if not 0 < self.min_scale <= 1:
            raise UserError(f"min_scale is {self.min_scale}; it must lie in (0, 1]")
        if not 0 <= self.jitter <= 2.5:  # the hue moves by a fifth of it, and by half at most
            raise UserError(f"jitter is {self.jitter}; it must lie in [0, 2.5]")
