"""Prompts as tensors, and SAM's prompt encoder over prompts that belong to several images."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from pretrain.encoder.stock import PromptEncoder
from pretrain.sizes import PATCH

PROMPT_WIDTH = 256
MASK_STRIDE = 4
"""Image pixels to a pixel of the decoder's low-resolution masks."""
ROUGH = 1e-3
"""How sure a rough mask is at most: its logits lie within 6.9 of 0, as those of predictions do."""


@dataclass(frozen=True)
class Prompts:
    """M prompts, each for one image of a batch and each asking for one object.

    All prompts of one call are of the same kinds (all with a box or none, and so on) and have the
    same number n of points. Points labelled -1 fill a prompt up to n. SAM attends to each of them
    as to its own "not a point" token, so filling up changes the output, as it does in SAM; group
    prompts by their number of points where that matters.

    Coordinates are (x, y) of the S x S model input. For points, pixel centres are whole numbers;
    the corners of boxes are continuous: the pixel in column x covers x to x + 1.
    """

    image: Tensor
    """(M,) int64, the image of the batch that each prompt is for."""
    points: Tensor | None = None
    """(M, n, 2) clicks; None, or n = 0, for none."""
    labels: Tensor | None = None
    """(M, n) 1 on the object, 0 on the background, -1 for no point."""
    boxes: Tensor | None = None
    """(M, 4) x0, y0, x1, y1, see `finetune.prompts.boxes`."""
    masks: Tensor | None = None
    """(M, 1, S / 4, S / 4) low-resolution logits of an earlier prediction."""
    target: Tensor | None = None
    """(M,) int64, which of the model's targets is meant, for decoders that take no prompts."""
    texts: Sequence[str] | None = None
    """M texts, each saying what is asked for."""
    text_tokens: Tensor | None = None
    """(M, t, 256) `texts` embedded, which `Segmenter.decode` adds for the decoder."""

    def __post_init__(self) -> None:
        points, labels = self.points, self.labels
        if (points is None) != (labels is None):
            raise ValueError("points and labels go together")
        if points is not None and labels is not None and points.shape != (*labels.shape, 2):
            raise ValueError(
                f"points {tuple(points.shape)} do not fit labels {tuple(labels.shape)}"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and len(value) != len(self.image):
                raise ValueError(f"{len(value)} {field.name} for {len(self.image)} prompts")

    def __len__(self) -> int:
        return len(self.image)

    def is_ambiguous(self) -> bool:
        """Whether each may mean several objects: one click, or a box or text without clicks."""
        clicks = 0 if self.points is None else self.points.shape[1]
        says_which = self.boxes is not None or self.texts is not None
        return clicks == (0 if says_which else 1)

    def to(self, device: torch.device | str) -> "Prompts":
        """The same prompts on another device."""
        given = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in given.items()}
        return replace(self, **moved)


def mask_logits(masks: Tensor) -> Tensor:
    """Masks as the logits that SAM takes as a mask prompt.

    They are the log odds of the share of each low-resolution pixel that a mask covers.

    Args:
        masks: (M, S, S) float in 0..1.

    Returns:
        (M, 1, S / 4, S / 4), within the bounds of `ROUGH`.
    """
    return torch.logit(avg_pool2d(masks[:, None], MASK_STRIDE), ROUGH)


def build_prompt_encoder(image_size: int) -> PromptEncoder:
    """SAM's prompt encoder for square images of `image_size` pixels.

    No parameter depends on the image size, so SAM's weights load at any.
    """
    grid = image_size // PATCH
    return PromptEncoder(
        embed_dim=PROMPT_WIDTH,
        image_embedding_size=(grid, grid),
        input_image_size=(image_size, image_size),
        mask_in_chans=16,
    )


def encode_prompts(encoder: PromptEncoder, prompts: Prompts) -> tuple[Tensor, Tensor, Tensor]:
    """Embed prompts as SAM does.

    Always in fp32: in bf16 the Fourier features of a coordinate are wrong by several pixels.

    Returns:
        sparse: (M, t, 256), one token a point and two a box, and one "not a point" token where
            there are points but no box; then those of the text.
        dense: (M, 256, h, w), of the mask prompt or of its absence.
        position: (1, 256, h, w), of the image embedding's pixels.
    """
    device = prompts.image.device
    with torch.autocast(device.type, enabled=False):
        points, labels = prompts.points, prompts.labels
        sparse, dense = encoder(
            points=None if points is None or points.shape[1] == 0 else (points.float(), labels),
            boxes=None if prompts.boxes is None else prompts.boxes.float(),
            masks=None if prompts.masks is None else prompts.masks.float(),
        )
        position = encoder.get_dense_pe()
    # Without any prompt the encoder cannot know how many there are and returns one.
    sparse = sparse.expand(len(prompts), -1, -1)
    if prompts.text_tokens is not None:
        sparse = torch.cat([sparse, prompts.text_tokens.to(sparse)], dim=1)
    return sparse, dense.expand(len(prompts), -1, -1, -1), position
