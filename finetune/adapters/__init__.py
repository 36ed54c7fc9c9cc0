"""Small trained modules beside frozen weights: set by a recipe in encoder and decoder blocks."""

from finetune.adapters.decoder import MsaDecoderAdapter
from finetune.adapters.msa import Adapter, MsaAdapter

__all__ = ["Adapter", "MsaAdapter", "MsaDecoderAdapter"]
