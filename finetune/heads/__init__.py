"""Decoders without prompts, with one output for each target: the heads that AutoSAM compares.

They are those of Hu et al. 2023, arXiv 2306.13731 ("AutoSAM"), for a frozen image encoder.
"""

from finetune.heads.autosam import AutoSam
from finetune.heads.cnn import CnnHead
from finetune.heads.linear import LinearHead

__all__ = ["AutoSam", "CnnHead", "LinearHead"]
