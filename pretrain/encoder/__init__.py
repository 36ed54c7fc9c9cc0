"""SAM's image encoder: exact at any size, able to drop tokens, loaded from many sources."""

from pretrain.encoder.sam import SIZES, EncoderSize, SamEncoder, build_encoder

__all__ = ["SIZES", "EncoderSize", "SamEncoder", "build_encoder"]
