"""Networks without SAM that it is compared with, each trained as a whole: `model.network`."""

from finetune.baselines.resunet import ResUNet
from finetune.baselines.segresnet import SegResNet
from finetune.baselines.swin_unetr import SwinUnetr
from finetune.baselines.unet import UNet
from finetune.baselines.unetr import Unetr

__all__ = ["ResUNet", "SegResNet", "SwinUnetr", "UNet", "Unetr"]
