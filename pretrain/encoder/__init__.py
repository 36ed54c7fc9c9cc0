"""SAM's image encoder: exact at any size, able to drop tokens, loaded from many sources."""

from pretrain.encoder.sam import SamEncoder, build_encoder

__all__ = ["SamEncoder", "build_encoder"]
