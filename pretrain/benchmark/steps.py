"""Training steps that the benchmark compares, each a module from images to a loss."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pretrain.benchmark.lightly_mae import LightlyMae
from pretrain.encoder.sam import SamEncoder, build_encoder, take
from pretrain.objectives import EMix, Inputs, MaskedAutoencoding, Objective, Plan, ShED, View
from pretrain.objectives.together import PretrainModel


class DenseLoss(nn.Module):
    """A forward pass on all tokens, with as little of a loss as a backward pass needs."""

    def __init__(self, encoder: SamEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> ()."""
        loss: Tensor = self.encoder.forward_tokens(images).float().square().mean()
        return loss


class ObjectivesLoss(nn.Module):
    """The sum of objectives that share an encoder."""

    def __init__(self, encoder: SamEncoder, **objectives: Objective) -> None:
        super().__init__()
        self.model = PretrainModel(encoder, objectives)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> ()."""
        return self.model.total(self.model(images, torch.Generator().manual_seed(0)))


class MaskTokensInEncoder(MaskedAutoencoding):
    """The same loss with mask tokens carried through the encoder, as in SimMIM: for comparison."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.encoder_mask_token = nn.Parameter(torch.zeros(1, 1, width))

    def plan(self, inputs: Inputs) -> Plan:
        kept = super().plan(inputs)
        keep = kept.views[0].keep
        assert keep is not None  # masked autoencoding always drops some
        keep = keep.to(inputs.images.device)
        is_kept = torch.zeros(inputs.embeddings.shape[:2], device=keep.device).scatter_(1, keep, 1)
        mixed = torch.where(is_kept[..., None] > 0, inputs.embeddings, self.encoder_mask_token)
        return Plan([View(mixed, None)], lambda encoded: kept.loss([take(encoded[0], keep)]))


def _three(encoder: SamEncoder, keep_ratio: float) -> ObjectivesLoss:
    width = encoder.size.width
    return ObjectivesLoss(
        encoder,
        mae=MaskedAutoencoding(width),
        emix=EMix(width, keep_ratio=keep_ratio),
        shed=ShED(width, keep_ratio=keep_ratio),
    )


DENSE = "dense forward + backward"
MAE = "MAE, 75 % dropped"
MASK_TOKENS = "MAE, mask tokens in the encoder"
LIGHTLY = "MAE of lightly on timm's ViT, 75 % dropped"

STEPS: dict[str, Callable[[SamEncoder], Sequence[nn.Module]]] = {
    DENSE: lambda encoder: [DenseLoss(encoder)],
    MAE: lambda encoder: [ObjectivesLoss(encoder, mae=MaskedAutoencoding(encoder.size.width))],
    MASK_TOKENS: lambda encoder: [
        ObjectivesLoss(encoder, mae=MaskTokensInEncoder(encoder.size.width))
    ],
    LIGHTLY: lambda encoder: [LightlyMae(encoder.size)],
    "three objectives, shared 25 %": lambda encoder: [_three(encoder, 0.25)],
    "three objectives, full tokens": lambda encoder: [_three(encoder, 1.0)],
    "three objectives as three dense models": lambda encoder: [
        ObjectivesLoss(encoder, mae=MaskTokensInEncoder(encoder.size.width)),
        ObjectivesLoss(encoder, emix=EMix(encoder.size.width, keep_ratio=1.0)),
        ObjectivesLoss(encoder, shed=ShED(encoder.size.width, keep_ratio=1.0)),
    ],
}
"""Losses by name, each with a backward pass of its own."""


def build_step(
    name: str,
    encoder_size: str,
    device: torch.device,
    recompute: bool = False,
    compiled: bool = False,
) -> Callable[[Tensor, bool], None]:
    """A step of `STEPS` as a function of images (B, 3, S, S) and whether bf16 is used."""
    encoder = build_encoder(encoder_size)
    encoder.recompute_blocks = recompute
    if compiled:
        for block in encoder.blocks:
            block.compile()
    models = [model.to(device) for model in STEPS[name](encoder)]

    def step(images: Tensor, bf16: bool) -> None:
        for model in models:
            train(model, images, bf16)

    return step


def train(model: nn.Module, images: Tensor, bf16: bool) -> None:
    """A forward and backward pass."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        out = model(images)
        loss = out if out.ndim == 0 else out.float().square().mean()
    loss.backward()
    model.zero_grad(set_to_none=True)
