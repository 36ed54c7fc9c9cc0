"""The segmenter: SAM's encoder, prompt encoder and mask decoder, and the losses of its masks."""

from finetune.model.building import build_model
from finetune.model.decoder import Decoded, Decoder
from finetune.model.mask_decoder import SamDecoder
from finetune.model.segmenter import Segmenter

__all__ = ["Decoded", "Decoder", "SamDecoder", "Segmenter", "build_model"]
