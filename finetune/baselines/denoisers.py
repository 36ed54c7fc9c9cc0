"""Networks that predict the noise in a mask from the image: SegDiff's, EnsemDiff's, MedSegDiff's.

Each is MONAI's U-Net of diffusion models, which knows the time step, with the image given to it in
another way. The sources are those of `finetune/baselines/diffusion.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RRDB_WIDTH, RRDB_GROWTH, RRDB_SCALE = 64, 32, 0.2
"""Channels of the image encoder, those that each of its convolutions adds, and its residuals'
factor."""


class Plan(NamedTuple):
    """What a denoiser is made of."""

    make_unet: Callable[..., nn.Module]
    """From `in_channels` to a U-Net that gives T maps."""
    image_size: int
    """S, side of the input."""
    targets: int
    """T, number of masks."""
    channels: Sequence[int]
    """Those of the U-Net's levels."""
    image_blocks: int
    """Blocks of the image encoder of `Summed`."""


class Denoiser(nn.Module, ABC):
    """The noise in masks, from the masks, the time step and the image."""

    @abstractmethod
    def __init__(self, plan: Plan) -> None:
        super().__init__()

    def features(self, images: Tensor) -> Tensor:
        """What is computed once for each image (B, 3, S, S): by default the image itself."""
        return images

    @abstractmethod
    def forward(self, noisy: Tensor, times: Tensor, features: Tensor) -> Tensor:
        """The noise (B, T, S, S) in masks (B, T, S, S) at time steps (B,) int64."""


class Concatenated(Denoiser):
    """EnsemDiff: image and noisy masks are the channels of one input."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.unet = plan.make_unet(in_channels=3 + plan.targets)

    def forward(self, noisy: Tensor, times: Tensor, features: Tensor) -> Tensor:
        noise: Tensor = self.unet(torch.cat([features, noisy], dim=1), times)
        return noise


class Summed(Denoiser):
    """SegDiff: features of the image and of the noisy masks are added, then enter the U-Net.

    Those of the image do not depend on the time step and come from an encoder of residual-in-
    residual dense blocks (Wang et al. 2018, ESRGAN, arXiv 1809.00219) at full resolution; those of
    the masks from one convolution.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        width = RRDB_WIDTH
        self.first = nn.Conv2d(3, width, 3, padding=1)
        blocks = [_RRDB() for _ in range(plan.image_blocks)]
        self.trunk = nn.Sequential(*blocks, nn.Conv2d(width, width, 3, padding=1))
        self.last = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, plan.channels[0], 3, padding=1),
        )
        self.masks = nn.Conv2d(plan.targets, plan.channels[0], 3, padding=1)
        self.unet = plan.make_unet(in_channels=plan.channels[0])

    def features(self, images: Tensor) -> Tensor:
        """(B, C, S, S)."""
        x = self.first(images)
        features: Tensor = self.last(x + self.trunk(x))
        return features

    def forward(self, noisy: Tensor, times: Tensor, features: Tensor) -> Tensor:
        noise: Tensor = self.unet(self.masks(noisy) + features, times)
        return noise


class _RRDB(nn.Module):
    """Three dense blocks of five convolutions each, in one residual."""

    def __init__(self) -> None:
        super().__init__()
        inputs = [RRDB_WIDTH + each * RRDB_GROWTH for each in range(5)]
        outputs = [RRDB_GROWTH] * 4 + [RRDB_WIDTH]
        self.dense = nn.ModuleList(
            nn.ModuleList(
                nn.Conv2d(*pair, 3, padding=1) for pair in zip(inputs, outputs, strict=True)
            )
            for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for convolutions in self.dense:
            known = y
            *growing, last = convolutions.children()
            for convolution in growing:
                known = torch.cat([known, F.leaky_relu(convolution(known), 0.2)], dim=1)
            y = y + RRDB_SCALE * last(known)
        return x + RRDB_SCALE * y


class Dynamic(Denoiser):
    """MedSegDiff: an encoder of the image beside that of the noisy masks, each step anew.

    After each of the middle levels the image's features m_I become LN(m_I) LN(FF(m_x)) m_I, where
    m_x are those of the masks and FF is the FF-Parser, a learned filter. The decoder takes the sum
    of both encoders' features at every level.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        image: Any = plan.make_unet(in_channels=3)
        self.unet: Any = plan.make_unet(in_channels=plan.targets)
        self.image_in, self.image_down = image.conv_in, image.down_blocks
        # by level, at whose end the side is halved once more
        self.parsers = nn.ModuleDict(
            {
                str(level): FFParser(channels, plan.image_size >> level + 1)
                for level, channels in list(enumerate(plan.channels))[1:-1]
            }
        )

    def forward(self, noisy: Tensor, times: Tensor, features: Tensor) -> Tensor:
        from monai.networks.nets.diffusion_model_unet import get_timestep_embedding

        unet = self.unet
        time = unet.time_embed(get_timestep_embedding(times, unet.conv_in.out_channels))
        x, image = unet.conv_in(noisy), self.image_in(features)
        skips = [x + image]
        both = zip(unet.down_blocks, self.image_down, strict=True)
        for level, (down, image_down) in enumerate(both):
            x, states = down(hidden_states=x, temb=time)
            image, image_states = image_down(hidden_states=image, temb=time)
            if str(level) in self.parsers:
                image = image * normalised(image) * normalised(self.parsers[str(level)](x))
                image_states[-1] = image
            skips += [one + other for one, other in zip(states, image_states, strict=True)]
        x = unet.middle_block(hidden_states=x + image, temb=time)
        for up in unet.up_blocks:
            count = len(up.resnets)
            x = up(hidden_states=x, res_hidden_states_list=skips[-count:], temb=time)
            del skips[-count:]
        noise: Tensor = unet.out(x)
        return noise


class FFParser(nn.Module):
    """Features times a learned map in the space of their frequencies, one for each channel.

    It starts as the identity.

    Args:
        channels: C.
        side: h, of the features.
    """

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        one = torch.tensor([1.0, 0.0])  # real and imaginary part
        self.weight = nn.Parameter(one.repeat(channels, side, side // 2 + 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, h) -> the same, in float32, which transforms need."""
        spectrum = torch.fft.rfft2(features.float(), norm="ortho")
        spectrum = spectrum * torch.view_as_complex(self.weight)
        return torch.fft.irfft2(spectrum, s=features.shape[-2:], norm="ortho")


def normalised(features: Tensor) -> Tensor:
    """(B, C, h, h) with mean 0 and variance 1 over C, h and h: layer norm without weights."""
    return F.layer_norm(features, features.shape[1:])


DENOISERS: dict[str, type[Denoiser]] = {
    "sum": Summed,
    "concatenate": Concatenated,
    "dynamic": Dynamic,
}
"""By the names that recipes use."""
