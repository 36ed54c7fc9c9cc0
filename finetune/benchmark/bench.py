"""What every table of the benchmark of stage two needs."""

from dataclasses import dataclass

import torch

from data_prep.common.components import Component
from data_prep.common.results import Results
from finetune.benchmark.config import BenchmarkOptions
from finetune.config import ModelConfig
from finetune.model.building import build_model
from finetune.model.segmenter import Segmenter
from pretrain.benchmark.clock import Clock
from pretrain.engine.cpu import bf16_is_fast

MASKS_PER_IMAGE = 4


@dataclass
class Bench:
    """Options, device, clock and document of a benchmark."""

    config: BenchmarkOptions
    device: torch.device
    clock: Clock
    results: Results

    @property
    def bf16(self) -> bool:
        """Whether steps run in bfloat16, as a recipe would on this device."""
        return bf16_is_fast(self.device)

    @property
    def model_name(self) -> str:
        """The encoder, image size and precision of what is measured, in words."""
        config = self.config
        precision = "bf16" if self.bf16 else "fp32"
        return f"{config.encoder_size} at {config.image_size} pixels in {precision}"

    def autocast(self) -> torch.autocast:
        """The precision of steps."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def segmenter(self, adapters: bool) -> Segmenter:
        """A model with new weights on the device, of which the encoder counts as loaded.

        Args:
            adapters: With MSA's, and a trained neck, as after stage one; else nothing in the
                encoder is trained.
        """
        config = ModelConfig(self.config.encoder_size, self.config.image_size)
        if adapters:
            config.encoder_adapter = Component("finetune.adapters.MsaAdapter")
            config.decoder_adapter = Component("finetune.adapters.MsaDecoderAdapter")
        segmenter = build_model(config)
        trained = (".adapter.", ".neck.") if adapters else ()
        frozen = [
            key
            for key in segmenter.state_dict()
            if key.startswith("image_encoder.") and not any(word in key for word in trained)
        ]
        segmenter.freeze(frozenset(frozen))
        return segmenter.to(self.device)
