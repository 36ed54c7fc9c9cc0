"""What stage two can be told."""

from dataclasses import dataclass, field

from finetune.data.dataset import SegmentationDataConfig
from finetune.model.losses import LossConfig
from finetune.model.segmenter import ModelConfig
from finetune.prompts.simulate import PromptConfig
from pretrain.engine.run import RunOptions


@dataclass(kw_only=True)
class TrainConfig(RunOptions):
    """Adapt a pretrained encoder to promptable segmentation with few labels."""

    data: SegmentationDataConfig
    """The labelled images."""
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
