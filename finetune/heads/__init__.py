"""Decoders without prompts, with one output for each target.

Three are those that Hu et al. 2023, arXiv 2306.13731 ("AutoSAM"), compare on a frozen image
encoder; the fourth is that of SAMed (arXiv 2304.13785), for an encoder with low-rank adapters.
"""

from finetune.heads.autosam import AutoSam
from finetune.heads.cnn import CnnHead
from finetune.heads.linear import LinearHead
from finetune.heads.samed import SamedDecoder

__all__ = ["AutoSam", "CnnHead", "LinearHead", "SamedDecoder"]
