"""UltraUNet: a U-Net that is guided by marks on the outline.

Chu et al. 2021, "Ultrasonic thyroid nodule detection method based on U-Net network" (Computer
Methods and Programs in Biomedicine 199, 105906). The paper was not at hand: what is certain is that
it segments by a U-Net and that marks guide it, those that physicians set at the ends of a nodule's
long and short axes when they measure it. How they are drawn, and the constants of its training, are
this project's choice.

Here the marks are a fourth channel of the input: 1 within `radius` of a mark, -1 within that of a
click on the background, 0 elsewhere. A box, which is what other models of this project are prompted
with, is marked in the middle of each side, where its axes end; a click on the object is a mark as
it is. So unlike other baselines it takes prompts, and runs once for each object rather than once
for each image. Without marks nothing of it is left but the U-Net.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from data_prep.common.errors import UserError
from finetune.baselines.unet_blocks import UNetDecoder, UNetEncoder
from finetune.model.decoder import Decoded, Decoder
from finetune.model.network import Network, require_positive
from finetune.model.prompt_encoder import Prompts


class UltraUNet(Network):
    """A U-Net on an image and the marks of one object.

    Args:
        width: Channels of the first level.
        radius: Radius of a mark, as a share of the side of the input.
    """

    takes_prompts = True

    def __init__(
        self, image_size: int, targets: Sequence[str], width: int = 64, radius: float = 0.02
    ) -> None:
        super().__init__(image_size, targets)
        require_positive(width=width)
        if not 0 < radius < 1:
            raise UserError(f"model.network.radius is {radius}; it must lie in 0..1")
        self.radius = radius * image_size
        self.down = UNetEncoder(4, width)
        self.up = UNetDecoder(width, 1)

    def forward(self, images: Tensor, stacks: Sequence[int] = ()) -> Tensor:
        """The images: `Marked` segments them, once their marks are known."""
        return images

    def make_decoder(self, image_size: int, targets: Sequence[str]) -> Decoder:
        """The U-Net itself."""
        return Marked(self)

    def segment(self, images: Tensor, marks: Tensor) -> Tensor:
        """Logits (M, 1, S, S) of images (M, 3, S, S) and marks (M, 1, S, S)."""
        logits: Tensor = self.up(self.down(torch.cat([images, marks], dim=1)))
        return logits


class Marked(Decoder):
    """Segments an image for each prompt. Its weights are those of the network."""

    def __init__(self, network: UltraUNet) -> None:
        self.network = network
        self.parts = {}

    def decode(self, embeddings: Tensor, prompts: Prompts, multimask: bool) -> Decoded:
        """One mask for each prompt; no IoU is expected of it.

        Args:
            embeddings: (B, 3, S, S) images.
            prompts: M boxes, clicks or both.
            multimask: Changes nothing: it has one mask.

        Raises:
            UserError: An earlier mask, which it does not take.
        """
        if prompts.masks is not None:
            raise UserError(
                "UltraUNet takes boxes and clicks, no masks; set prompts.previous_mask to false and"
                " prompts.mask_share to 0"
            )
        marks = draw_marks(prompts, embeddings.shape[-1], self.network.radius)
        logits = self.network.segment(embeddings[prompts.image], marks.to(embeddings.dtype))
        return Decoded(logits.float(), None)


def draw_marks(prompts: Prompts, side: int, radius: float) -> Tensor:
    """Marks (M, 1, side, side) of M prompts: 1, -1 on the background, 0 where there is none.

    Args:
        prompts: Boxes, clicks or both.
        radius: Of a mark, in pixels.
    """
    device = prompts.image.device
    points = torch.zeros(len(prompts), 0, 2, device=device)
    labels = torch.zeros(len(prompts), 0, device=device)
    if prompts.boxes is not None:
        x0, y0, x1, y1 = (prompts.boxes - 0.5).unbind(1)  # of pixel centres
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        points = torch.stack([x, y0, x1, y, x, y1, x0, y], dim=1).unflatten(1, (4, 2))
        labels = torch.ones(len(prompts), 4, device=device)
    if prompts.points is not None and prompts.labels is not None:
        points = torch.cat([points, prompts.points.to(points.dtype)], dim=1)
        labels = torch.cat([labels, prompts.labels.to(labels.dtype)], dim=1)
    centres = torch.arange(side, device=device)
    across = (centres - points[..., :1]).square()  # (M, n, S)
    down = (centres - points[..., 1:]).square()
    near = across[:, :, None] + down[..., None] <= radius**2  # (M, n, S, S)
    on, off = ((near & (labels == value)[..., None, None]).any(1, True) for value in (1, 0))
    return on.float() - off.float()
