"""Small trained modules beside frozen weights: set by a recipe in encoder and decoder blocks."""

from finetune.adapters.lora import LoraAdapter
from finetune.adapters.msa import Adapter, MsaAdapter
from finetune.adapters.msa_3d import Msa3dAdapter
from finetune.adapters.msa_decoder import MsaDecoderAdapter
from finetune.adapters.sam_med2d import SamMed2dAdapter
from finetune.model.mask_decoder import DecoderBlockAdapter
from pretrain.encoder.block import BlockAdapter

__all__ = [
    "Adapter",
    "BlockAdapter",
    "DecoderBlockAdapter",
    "LoraAdapter",
    "Msa3dAdapter",
    "MsaAdapter",
    "MsaDecoderAdapter",
    "SamMed2dAdapter",
]
