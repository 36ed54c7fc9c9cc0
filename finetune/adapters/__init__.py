"""Small trained modules beside frozen weights: set by a recipe in encoder and decoder blocks."""

from finetune.adapters.msa import Adapter, MsaAdapter
from finetune.adapters.msa_decoder import MsaDecoderAdapter

__all__ = ["Adapter", "MsaAdapter", "MsaDecoderAdapter"]
