"""What e-Mix and ShED make of some images, as pictures."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from pretrain.encoder.sam import SamEncoder
from pretrain.objectives.base import inputs_of
from pretrain.objectives.reconstruction import to_rgb
from pretrain.sizes import PATCH

if TYPE_CHECKING:
    from pretrain.objectives.emix import EMix
    from pretrain.objectives.shed import ShED


@torch.no_grad()
def similarities(
    encoder: SamEncoder, objective: "EMix", images: Tensor, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """How alike each mixed image is to each clean one, and what it was mixed of.

    Args:
        images: (B, 3, S, S) normalised.

    Returns:
        (B, B) cosine similarities, mixed images in rows and clean ones in columns, and (B, B)
        shares: lambda in the column of an image itself, 1 - lambda in that of its partner.
    """
    inputs = inputs_of(encoder, images, seed)
    mix = objective.mix(inputs)
    z, z_mix = (
        objective.vectors(encoder.encode(view.embeddings, inputs.grid, view.keep))
        for view in (mix.clean, mix.mixed)
    )
    shares = torch.diag(mix.share)
    # an image that is its own partner has both shares
    shares.scatter_add_(1, mix.partner[:, None], 1 - mix.share[:, None])
    return z_mix @ z.T, shares


def draw_similarities(encoder: SamEncoder, objective: "EMix", images: Tensor) -> Figure:
    """Two matrices side by side: cosine similarities, and the shares (lambda) of the mixes.

    Args:
        images: (B, 3, S, S) normalised, on the encoder's device.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    titles = ("cosine similarity", "share in the mix (lambda, 1 - lambda)")
    found = similarities(encoder, objective, images)
    for axes, title, matrix in zip(figure.subplots(1, 2), titles, found, strict=True):
        values = matrix.cpu().numpy()
        picture = axes.imshow(values, cmap="viridis")
        figure.colorbar(picture, ax=axes, shrink=0.8)
        middle = (values.min() + values.max()) / 2
        for (row, column), value in np.ndenumerate(values):
            colour = "black" if value > middle else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, size=8)
        axes.set(title=title, xlabel="clean image", ylabel="mixed image")
        axes.set(xticks=range(len(values)), yticks=range(len(values)))
    return figure


@torch.no_grad()
def moved_probabilities(
    encoder: SamEncoder, objective: "ShED", images: Tensor, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """How probable ShED thinks it that each token was moved, and whether it was.

    Args:
        images: (B, 3, S, S) normalised.

    Returns:
        (B, N) probabilities, NaN for tokens that the encoder did not see, and (B, N) bool.
    """
    inputs = inputs_of(encoder, images, seed)
    view, is_moved = objective.shuffle(inputs)
    encoded = encoder.encode(view.embeddings, inputs.grid, view.keep)
    probability = objective.classify(encoded).float().softmax(-1)[..., 1]  # (B, n)
    if view.keep is None:
        return probability, is_moved.bool()
    keep = view.keep.to(images.device)
    shape = (len(images), inputs.grid[0] * inputs.grid[1])
    whole = torch.full(shape, torch.nan, device=images.device)
    moved = torch.zeros(shape, dtype=torch.bool, device=images.device)
    return whole.scatter(1, keep, probability), moved.scatter(1, keep, is_moved.bool())


def moved_accuracy(probability: Tensor, moved: Tensor) -> tuple[float, float, float]:
    """Shares of the seen tokens classified correctly: of all, of the moved and of the others."""
    seen = ~probability.isnan()
    right = (probability > 0.5) == moved
    shares = (right[mask].float().mean() for mask in (seen, seen & moved, seen & ~moved))
    of_all, of_moved, of_others = (float(share) for share in shares)
    return of_all, of_moved, of_others


def draw_moved(encoder: SamEncoder, objective: "ShED", images: Tensor) -> Figure:
    """One column per image: the image, and its tokens by the probability that they were moved.

    Those that were moved have a red frame.

    Args:
        images: (B, 3, S, S) normalised, on the encoder's device.
    """
    probability, moved = moved_probabilities(encoder, objective, images)
    of_all, of_moved, of_others = moved_accuracy(probability, moved)
    rows, columns = images.shape[-2] // PATCH, images.shape[-1] // PATCH
    figure = Figure(figsize=(2 * len(images), 4.6), layout="constrained")
    grid = figure.subplots(2, len(images), squeeze=False)
    for number, (above, below) in enumerate(zip(*grid, strict=True)):
        above.imshow(to_rgb(images[number]))
        values = probability[number].view(rows, columns).cpu().numpy()
        below.imshow(np.zeros_like(values), cmap=ListedColormap(["0.85"]))
        picture = below.imshow(values, vmin=0, vmax=1, cmap="viridis")
        for y, x in np.argwhere(moved[number].view(rows, columns).cpu().numpy()):
            frame = ([x - 0.5, x + 0.5, x + 0.5, x - 0.5, x - 0.5], [y - 0.5] * 2 + [y + 0.5] * 2)
            below.plot(frame[0], [*frame[1], y - 0.5], color="red", linewidth=1)
        above.axis("off"), below.axis("off")
    figure.colorbar(picture, ax=grid[1], label="probability of having moved", shrink=0.8)
    figure.suptitle(
        f"tokens classified correctly: {of_all:.1%}; of those moved {of_moved:.1%}, of the others"
        f" {of_others:.1%} (always saying `not moved` is right for {1 - objective.moved:.0%})"
    )
    return figure
