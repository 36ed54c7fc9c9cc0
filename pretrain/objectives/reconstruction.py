"""What masked autoencoding makes of an image, as a picture."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from lightly.models.utils import get_at_index, patchify, set_at_index, unpatchify
from matplotlib.figure import Figure
from torch import Tensor

from pretrain.encoder.pixels import (
    PIXEL_MEAN,
    PIXEL_STD,
    from_common_scale,
    to_common_scale,
)
from pretrain.encoder.sam import SamEncoder
from pretrain.objectives.base import inputs_of
from pretrain.sizes import PATCH

if TYPE_CHECKING:
    from pretrain.objectives.mae import MaskedAutoencoding


@torch.no_grad()
def reconstruct(
    encoder: SamEncoder, objective: "MaskedAutoencoding", images: Tensor, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Images as the encoder saw them, and with the hidden patches filled in by the decoder.

    Patches predicted in normalised form get back the true patch's mean and deviation, as in the
    paper's figures: judge structure in them, not brightness.

    Args:
        images: (B, 3, S, S) normalised.

    Returns:
        (B, 3, S, S) with hidden patches in middle grey, and (B, 3, S, S) reconstructed; both
        normalised.
    """
    inputs = inputs_of(encoder, images, seed)
    grid = inputs.grid
    view = inputs.clean(objective.keep_ratio)
    assert view.keep is not None  # keep_ratio is below 1
    keep = view.keep.to(images.device)
    tokens = encoder.encode(view.embeddings, grid, view.keep)
    patches = patchify(to_common_scale(images), PATCH)  # (B, N, 768)
    predicted = objective.predict(objective.decode(tokens, keep, grid)).float()
    if objective.normalise_patches:
        mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
        predicted = predicted * (variance + 1e-6).sqrt() + mean
    visible = get_at_index(patches, keep)
    masked = set_at_index(torch.zeros_like(patches), keep, visible)
    filled = set_at_index(predicted, keep, visible)
    masked, filled = (from_common_scale(unpatchify(each, PATCH)) for each in (masked, filled))
    return masked, filled


def draw_reconstructions(
    encoder: SamEncoder, objective: "MaskedAutoencoding", images: Tensor
) -> Figure:
    """One row per image: the image, what was left of it, and its reconstruction.

    Args:
        images: (B, 3, S, S) normalised, on the encoder's device.
    """
    was_training = encoder.training
    encoder.eval(), objective.eval()
    columns = [images, *reconstruct(encoder, objective, images)]
    encoder.train(was_training), objective.train(was_training)
    titles = ("image", f"{objective.keep_ratio:.0%} kept", "reconstructed")
    rows = len(images)
    figure = Figure(figsize=(6, 2 * rows))
    axes = figure.subplots(rows, 3, squeeze=False)
    for column, (title, pictures) in enumerate(zip(titles, columns, strict=True)):
        for row in range(rows):
            axes[row, column].imshow(to_rgb(pictures[row]))
            axes[row, column].axis("off")
        axes[0, column].set_title(title)
    figure.subplots_adjust(wspace=0.03, hspace=0.03)
    return figure


def to_rgb(image: Tensor) -> np.ndarray:
    """(3, H, W) normalised -> (H, W, 3) in 0..1 for display."""
    mean, std = (torch.tensor(c).view(3, 1, 1) for c in (PIXEL_MEAN, PIXEL_STD))
    pixels = image.detach().float().cpu() * std + mean
    return (pixels / 255).clamp(0, 1).permute(1, 2, 0).numpy()
