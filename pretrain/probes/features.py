"""One vector for each image: the mean of its tokens, or a thumbnail."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d
from torch.utils.data import DataLoader
from tqdm import tqdm

from data_prep.loader.dataset import Record
from data_prep.loader.signals import leave_signals_to_parent
from pretrain.encoder.geometry import Resize
from pretrain.encoder.pixels import as_pixels, normalise_pixels, stack_pixels
from pretrain.encoder.sam import SamEncoder
from pretrain.probes.labelled import Labelled
from pretrain.sizes import PATCH
from pretrain.transform import require_picture

THUMBNAIL = "thumbnail"
THUMBNAIL_SIZE = 8

Features = dict[str, NDArray[np.float32]]
"""(N, C) vectors of all images, by what made them."""


class Framed(NamedTuple):
    """Whole images in SAM's frame."""

    images: Tensor
    """(B, 1, S, S) or (B, 3, S, S) in 0..255."""
    valid: Tensor
    """(B, S, S) bool: where the frame shows the image and not padding."""
    thumbnails: Tensor
    """(B, 192) float32, see `thumbnail`."""


@dataclass(frozen=True)
class Frames:
    """Fits records into a square and collates them. (Picklable.)"""

    dataset: torch.utils.data.Dataset[Record]
    size: int

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        record = self.dataset[index]
        require_picture(record)
        pixels = as_pixels(record.image)  # (C, h, w)
        height, width = pixels.shape[-2:]
        frame = Resize((height, width), self.size)
        return frame.image(pixels), frame.valid(), thumbnail(pixels)

    @staticmethod
    def collate(samples: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Framed:
        """A batch."""
        images, valid, thumbnails = zip(*samples, strict=True)
        return Framed(stack_pixels(images), torch.stack(valid), torch.stack(thumbnails))


def thumbnail(pixels: Tensor) -> Tensor:
    """An image (C, h, w) in 8 x 8 pixels, as red, green and blue: (192,) float32.

    Each is the mean over its part of the image. It knows colour and layout, and is the least that
    an encoder must surpass.
    """
    small = adaptive_avg_pool2d(pixels.float(), THUMBNAIL_SIZE)  # (C, 8, 8)
    return small.expand(3, -1, -1).flatten()


def mean_token(tokens: Tensor, valid: Tensor) -> Tensor:
    """The mean of an image's tokens, each weighted by how much of it shows the image.

    Args:
        tokens: (B, N, C) of a square image, row by row.
        valid: (B, S, S) bool, False on padding.

    Returns:
        (B, C) float32.
    """
    shown = avg_pool2d(valid[:, None].float(), PATCH).flatten(1)  # (B, N)
    share = shown / shown.sum(dim=1, keepdim=True)
    return torch.einsum("bn,bnc->bc", share, tokens.float())


@torch.no_grad()
def extract(
    labelled: Labelled,
    encoders: Mapping[str, SamEncoder],
    image_size: int,
    accelerator: Accelerator,
    batch_size: int = 32,
    workers: int = 0,
    bf16: bool = False,
    thumbnails: bool = True,
    progress: bool = False,
) -> Features:
    """Vectors of all images by each encoder, and their thumbnails. All processes call it.

    Batches are the same whatever the number of processes, which take turns with them.

    Args:
        encoders: By name, on the accelerator's device; how they are set, training or not, is
            restored.
        image_size: Side of the square that images are fitted into, keeping their proportions.
        bf16: Encode in bfloat16 where that is safe.
        thumbnails: Also give those, as `THUMBNAIL`.
        progress: Show a bar in the main process.

    Returns:
        The vectors, in all processes.

    Raises:
        UserError: A record that is no 2D image, or does not decode.
    """
    frames = Frames(labelled.images(), image_size)
    indices = np.arange(len(labelled)).tolist()
    batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    loader: DataLoader[Framed] = DataLoader(
        frames,  # type: ignore[arg-type]
        batch_sampler=mine,
        num_workers=min(workers, len(mine)),
        collate_fn=Frames.collate,
        worker_init_fn=leave_signals_to_parent,
    )
    widths = {name: encoder.size.width for name, encoder in encoders.items()}
    if thumbnails:
        widths[THUMBNAIL] = 3 * THUMBNAIL_SIZE**2
    device = accelerator.device
    found = {  # a process adds zeros to the vectors of the others
        name: torch.zeros(len(labelled), width, device=device) for name, width in widths.items()
    }
    was_training = {name: encoder.training for name, encoder in encoders.items()}
    for encoder in encoders.values():
        encoder.eval()
    for members, batch in tqdm(
        zip(mine, loader, strict=True),
        desc=labelled.name,
        total=len(mine),
        unit="batch",
        disable=not (progress and accelerator.is_main_process),
    ):
        valid = batch.valid.to(device)
        images = normalise_pixels(batch.images.to(device), valid)
        rows = torch.tensor(members, device=device)
        for name, encoder in encoders.items():
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                tokens = encoder.forward_tokens(images)
            found[name][rows] = mean_token(tokens, valid)
        if thumbnails:
            found[THUMBNAIL][rows] = batch.thumbnails.to(device)
    for name, encoder in encoders.items():
        encoder.train(was_training[name])
    return {name: accelerator.reduce(own, "sum").cpu().numpy() for name, own in found.items()}
