"""Masks drawn by a diffusion model that sees the image: SegDiff, EnsemDiff and MedSegDiff.

- SegDiff: Amit et al. 2021, "SegDiff: image segmentation with diffusion probabilistic models"
  (arXiv 2112.00390). `condition: sum`, 100 steps, and the samples' mean. Its code draws 9 samples.
- EnsemDiff: Wolleb et al. 2021, "Diffusion models for implicit image segmentation ensembles"
  (arXiv 2112.03145). `condition: concatenate`, 1000 steps, the mean of 5 samples.
- MedSegDiff: Wu et al. 2022, "MedSegDiff: medical image segmentation with diffusion probabilistic
  model" (arXiv 2211.00611). `condition: dynamic`, 100 steps, 25 samples.

Masks are 1 on the object and -1 elsewhere, Gaussian noise is added to them (Ho et al. 2020,
arXiv 2006.11239), and a network learns to predict it. Variances are linear, scaled for the number
of steps as in the code of Nichol and Dhariwal 2021 (arXiv 2102.09672), on which all three build.

What differs from all three: the U-Net is MONAI's, without dropout; the variance in sampling is
fixed, while EnsemDiff and MedSegDiff learn it; there is no running mean of the weights; several
targets are the channels of one mask. The mask that is guessed at each step is kept within -1 and 1,
and noise of the smaller variance is added, where SegDiff's code does neither. EnsemDiff and
MedSegDiff have masks of 0 and 1. SegDiff's U-Net begins with one more convolution, behind the sum.
MedSegDiff's U-Net sees the noisy mask alone, as in its paper; in its code it sees the image, too.
MedSegDiff's samples are fused by their mean, not by STAPLE; its image encoder has no decoder
and no loss of its own, as the published code has; its FF-Parser starts as the identity. Constants
are those of published code and abstracts; the papers themselves were not at hand.
"""

from collections.abc import Sequence
from functools import partial
from math import gcd

import numpy as np
import torch
from torch import Tensor

from data_prep.common.errors import UserError
from finetune.baselines.denoisers import DENOISERS, Plan
from finetune.baselines.spatial import import_monai
from finetune.model.network import Network

FIRST_VARIANCE, LAST_VARIANCE, THOUSAND = 1e-4, 0.02, 1000
"""Of a schedule of a thousand steps; a shorter one has larger ones."""
LEAST_STEPS = 21
"""With fewer the last variance would be 1 or more."""
GROUPS = 32
"""Of channels that are normalised together, where they can be so many."""
EPSILON = 1e-4
"""How near a probability comes to 0 and 1."""


class Diffusion(Network):
    """Draws masks from noise, several for each image, and takes their mean.

    It is trained by the error of the predicted noise alone: see `NoMaskLoss`.

    Args:
        condition: How the image is given: sum, concatenate or dynamic.
        steps: Steps from a mask to noise, in training.
        sampling_steps: Steps from noise to a mask, spread over those; as many or fewer.
        eta: How much noise each of them adds, 0..1: 1 as in Ho et al. 2020, 0 none (DDIM, Song et
            al. 2021, arXiv 2010.02502).
        samples: Masks that are drawn and averaged.
        seed: Of their noise. An image has the same masks each time, whatever lies beside it.
        channels: Those of the U-Net's levels, the finest first.
        attention: Which of the levels have self-attention.
        blocks: Residual blocks in each level.
        heads: Attention heads.
        image_blocks: Blocks of the image encoder of `sum`.
    """

    def __init__(
        self,
        image_size: int,
        targets: Sequence[str],
        condition: str = "concatenate",
        steps: int = 1000,
        sampling_steps: int = 1000,
        eta: float = 1.0,
        samples: int = 5,
        seed: int = 0,
        channels: tuple[int, ...] = (128, 128, 256, 256, 512, 512),
        attention: tuple[bool, ...] = (False, False, False, False, True, False),
        blocks: int = 2,
        heads: int = 1,
        image_blocks: int = 12,
    ) -> None:
        super().__init__(image_size, targets)
        whole = [steps, sampling_steps, samples, blocks, heads, image_blocks, *channels]
        divisor = 2 ** (len(channels) - 1)
        refused = {
            f"condition is {condition!r}; there are {', '.join(DENOISERS)}": condition
            not in DENOISERS,
            "steps, samples, channels, blocks and heads must be positive": min(whole) < 1
            or not channels,
            f"steps is {steps}; it must be {LEAST_STEPS} or more": steps < LEAST_STEPS,
            f"sampling_steps is {sampling_steps}; there are {steps} steps": sampling_steps > steps,
            f"eta is {eta}; it must lie in 0..1": not 0 <= eta <= 1,
            f"channels {list(channels)} must be multiples of heads {heads}, and attention"
            f" {list(attention)} as many": len(channels) != len(attention)
            or gcd(*channels) % max(heads, 1) > 0,
            f"{len(channels)} levels need model.image_size to be a multiple of {divisor}, not"
            f" {image_size}": image_size % divisor > 0,
        }
        for line, found in refused.items():
            if found:
                raise UserError(f"model.network: {line}")
        self.targets, self.side = len(targets), image_size
        self.steps, self.sampling_steps, self.eta = steps, sampling_steps, eta
        self.samples, self.seed = samples, seed
        variances = THOUSAND / steps * torch.linspace(FIRST_VARIANCE, LAST_VARIANCE, steps)
        # alpha with a bar in Ho et al.; not a weight
        self.register_buffer("kept", (1 - variances).cumprod(0), persistent=False)
        self.kept: Tensor
        make_unet = partial(
            import_monai().DiffusionModelUNet,
            spatial_dims=2,
            out_channels=len(targets),
            channels=channels,
            attention_levels=attention,
            num_res_blocks=blocks,
            num_head_channels=[each // heads for each in channels],
            norm_num_groups=gcd(GROUPS, *channels),
        )
        plan = Plan(make_unet, image_size, len(targets), channels, image_blocks)
        self.denoiser = DENOISERS[condition](plan)

    def training_maps(
        self, images: Tensor, stacks: Sequence[int], truth: Tensor, rng: np.random.Generator
    ) -> Tensor:
        """(B, 2 T, S, S): logits of the masks as guessed in one step, and the noise's errors.

        The time step is drawn for each image, and noise is added to its true masks.
        """
        draw = torch.Generator().manual_seed(int(rng.integers(2**63)))
        times = torch.randint(self.steps, (len(images),), generator=draw).to(images.device)
        noise = torch.randn(truth.shape, generator=draw).to(images.device)
        noisy = self.add_noise(2 * truth.float() - 1, noise, times)
        predicted = self.denoiser(noisy, times, self.denoiser.features(images)).float()
        kept = self.kept[times][:, None, None, None]
        guess = (noisy - (1 - kept).sqrt() * predicted) / kept.sqrt()
        return torch.cat([logits_of(guess), predicted - noise], dim=1)

    def add_noise(self, masks: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Masks (B, T, S, S) in -1..1 at the steps `times` (B,), from 0 (Ho et al., eq. 4)."""
        kept = self.kept[times][:, None, None, None]
        return kept.sqrt() * masks + (1 - kept).sqrt() * noise

    def auxiliary_loss(self, maps: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """Mean squared error of the predicted noise (Ho et al., eq. 14), on padding, too.

        Masks are drawn from noise over the whole square. What was never learned on padding would be
        wrong there, and reach the image through normalisation and attention.
        """
        return maps[:, self.targets :].square().mean()

    @torch.no_grad()
    def forward(self, images: Tensor, stacks: Sequence[int] = ()) -> Tensor:
        """Logits (B, T, S, S) of the mean of the masks that are drawn; no gradient."""
        features = self.denoiser.features(images)
        draw = torch.Generator().manual_seed(self.seed)
        mean = torch.zeros((), device=images.device)
        for _ in range(self.samples):
            mean = mean + self.sample(features, draw) / self.samples
        return logits_of(mean)

    def sample(self, features: Tensor, draw: torch.Generator) -> Tensor:
        """One mask for each image, (B, T, S, S) in -1..1, all from the same noise."""

        def noise() -> Tensor:
            each = torch.randn(self.targets, self.side, self.side, generator=draw)
            return each.to(features.device).expand(len(features), -1, -1, -1)

        masks = noise()
        times = torch.linspace(self.steps - 1, 0, self.sampling_steps).round().long().tolist()
        for time, before in zip(times, [*times[1:], None], strict=True):
            at = torch.full((len(features),), time, device=features.device)
            predicted = self.denoiser(masks, at, features).float()
            masks = self.step_back(masks, predicted, time, before, noise())
        return masks

    def step_back(
        self, masks: Tensor, predicted: Tensor, time: int, before: int | None, noise: Tensor
    ) -> Tensor:
        """One step towards the mask (Song et al. 2021, eq. 12 and 16), its guess kept in -1..1.

        Between neighbouring steps with `eta` 1 it is that of Ho et al. It is not MONAI's: where
        that skips steps, it does not go on from the time it stepped to, and its noise depends on
        an image's place in the batch.

        Args:
            masks: (B, T, S, S) at the step `time`.
            predicted: The noise in them.
            time: From 0.
            before: The step that follows; None: the mask itself.
            noise: Standard normal, as large.
        """
        kept = self.kept[time]
        goal = torch.ones_like(kept) if before is None else self.kept[before]
        guess = ((masks - (1 - kept).sqrt() * predicted) / kept.sqrt()).clamp(-1, 1)
        direction = (masks - kept.sqrt() * guess) / (1 - kept).sqrt()
        spread = self.eta * ((1 - goal) / (1 - kept) * (1 - kept / goal)).sqrt()
        rest = (1 - goal - spread.square()).clamp(min=0).sqrt()
        return goal.sqrt() * guess + rest * direction + spread * noise


def logits_of(masks: Tensor) -> Tensor:
    """Logits of masks in -1..1, any shape; 0 stays 0."""
    return ((masks + 1) / 2).clamp(EPSILON, 1 - EPSILON).logit()
