"""What stage one can be told, and what it refuses."""

from collections.abc import Callable
from dataclasses import dataclass

from data_prep.common.errors import UserError
from pretrain.encoder.sam import PATCH, WINDOW
from pretrain.engine.run import RunOptions
from pretrain.objectives import Objective


@dataclass
class DataConfig:
    """Unlabelled images."""

    shards: str | list[str]
    """Folder or URL of a shard set written by `python -m data_prep shard`, or a list of several."""
    weights: list[float] | None = None
    """Relative share of the samples that each set of a list gives; without it, by its size."""
    split: str = "train"
    """Split of the shard sets."""
    window: int = 4
    """Shards among which samples are shuffled; reading stays sequential over larger ranges."""
    min_scale: float = 0.2
    """Smallest share of the image's area that a random crop covers."""
    workers: int = 4
    """Processes that read and decode, for each training process."""


@dataclass(kw_only=True)
class PretrainConfig(RunOptions):
    """Pretrain SAM's image encoder on unlabelled images."""

    data: DataConfig
    """The images."""
    objectives: dict[str, Callable[[int], Objective]]
    """Losses by name, each a class of `pretrain.objectives`; one with weight 0 is off."""
    encoder: str = "vit_b"
    """Size: vit_t, vit_s, vit_b, vit_l or vit_h."""
    start_from: str | None = None
    """Weights to start from: a SAM checkpoint, encoder file, run folder or Hub name."""
    image_size: int = 224
    """Side of the square input in pixels; tokens are dropped exactly at multiples of 224."""
    compile: bool = False
    """Compile the encoder's blocks with torch.compile."""
    recompute_blocks: bool = False
    """Recompute blocks in the backward pass: less memory, about a third more time."""


def check(config: PretrainConfig) -> None:
    """Refuse what cannot run, before anything is written."""
    if config.image_size < PATCH or config.image_size % PATCH:
        raise UserError(f"image_size {config.image_size} is no multiple of {PATCH} pixels")
    if not 0 < config.data.min_scale <= 1:
        raise UserError(f"data.min_scale {config.data.min_scale} is no share in (0, 1]")
    if config.data.window < 1 or config.data.workers < 0:
        raise UserError("data.window must be 1 or more, and data.workers 0 or more")


def build_objectives(config: PretrainConfig, width: int) -> dict[str, Objective]:
    """The objectives that are on, for an encoder of this width."""
    try:
        built = {name: build(width) for name, build in config.objectives.items()}
    except (ValueError, AssertionError) as error:
        raise UserError(f"objectives: {error}") from None
    for name, objective in built.items():
        if objective.weight < 0:
            raise UserError(f"objectives.{name}.weight is {objective.weight}; expected 0 or more")
    active = {name: objective for name, objective in built.items() if objective.weight > 0}
    if not active:
        raise UserError("objectives: none is on; give at least one a weight above 0")
    padded = config.image_size % (PATCH * WINDOW) != 0
    for name, objective in active.items():
        if padded and objective.keep_ratio < 1:
            raise UserError(
                f"image_size {config.image_size} pads attention windows, so {name} cannot drop "
                f"tokens exactly; use a multiple of {PATCH * WINDOW}, or keep_ratio 1 for e-Mix "
                "and ShED"
            )
    return active
