"""What stage two can be told."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_prep.errors import UserError
from finetune.data import SegmentationDataConfig
from finetune.losses import LossConfig
from finetune.model import ModelConfig
from finetune.prompts.simulate import PromptConfig
from pretrain.optim import OptimConfig
from pretrain.run import Resume


@dataclass
class TrainConfig:
    """Adapt a pretrained encoder to promptable segmentation with few labels."""

    data: SegmentationDataConfig
    """The labelled images."""
    output: Path
    """Run folder; made, or continued with --resume auto."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Encoder, adapters, and what is trained."""
    encoder: str | None = None
    """Weights of the image encoder: a stage-one run, an encoder file, a SAM checkpoint or a Hub
    name. null: those of `sam`, or new ones, which are then trained."""
    sam: str | None = None
    """SAM checkpoint for prompt encoder and mask decoder. null: new ones, which are trained."""
    prompts: PromptConfig = field(default_factory=PromptConfig)
    """Simulated clicks and boxes."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights of the loss terms."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Steps, batch and optimiser."""
    precision: Literal["no", "bf16"] = "no"
    """bf16 runs the forward pass in bfloat16 where that is safe."""
    log_every: int = 10
    """Steps between lines of metrics."""
    save_every: int = 500
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Checkpoints kept."""
    seed: int = 0
    """Seed of weights, order, augmentation and prompts."""
    resume: Resume = "never"
    """auto continues the run in the output folder from its newest checkpoint."""

    def __post_init__(self) -> None:
        if self.log_every < 1 or self.save_every < 1 or self.keep < 1:
            raise UserError("log_every, save_every and keep must be 1 or more")
