"""The segmenter: SAM's encoder, prompt encoder and mask decoder, and the losses of its masks."""

from finetune.model.segmenter import Decoded, ModelConfig, Segmenter, build_model

__all__ = ["Decoded", "ModelConfig", "Segmenter", "build_model"]
