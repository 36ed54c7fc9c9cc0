"""SimCLR (Chen et al. 2020, arXiv 2002.05709) for the encoder of a network, through lightly.

Two random views of an image are encoded, pooled and projected, and must find each other among all
views of the batch.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch import Tensor, nn

from data_prep.common.errors import UserError
from data_prep.loader.dataset import Record
from data_prep.loader.mixture import ShardMixture
from finetune.model.network import Network
from finetune.simclr.config import SimclrConfig
from pretrain.encoder.pixels import as_pixels, normalise_pixels
from pretrain.encoder.weights import ENCODER, load_strictly
from pretrain.engine.checkpoint import Checkpoint
from pretrain.engine.loop import train
from pretrain.engine.stage import Stage
from pretrain.transform import require_picture

HEAD = "head"
"""Name of the projection head's weights in a checkpoint."""
PROJECTED = 128
"""Width of the vectors that are compared, as in the paper."""


class Views(NamedTuple):
    """Two views of each image of a batch."""

    first: Tensor
    """(B, 3, S, S) in 0..255."""
    second: Tensor
    """The same images, seen otherwise."""
    keys: list[str]
    """Of the records."""


class TwoViews:
    """lightly's two views of a record, drawn from a generator of ours.

    Args:
        transform: From a PIL image to two tensors (3, S, S) in 0..1.
    """

    def __init__(self, transform: SimCLRTransform) -> None:
        self.transform = transform

    def __call__(self, record: Record, rng: np.random.Generator) -> Views:
        """A batch of one.

        Raises:
            UserError: The record is a volume, or colour of 16 bits.
        """
        require_picture(record)
        pixels = as_pixels(record.image)
        if pixels.dtype != torch.uint8:
            pixels = pixels.round().to(torch.uint8)
        image = Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).numpy())
        with drawn_from(rng):
            first, second = map(torch.as_tensor, self.transform(image))  # (3, S, S) in 0..1
        return Views(255 * first[None], 255 * second[None], [record.key])


@contextmanager
def drawn_from(rng: np.random.Generator) -> Iterator[None]:
    """Inside it torch and NumPy, from whose global states lightly draws, are seeded by `rng`."""
    before = np.random.get_state()
    seed = int(rng.integers(2**32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(before)


class Simclr(nn.Module):
    """Encoder, projection head and loss.

    Before the head takes the mean over the pixels it has a convolution, for networks that end in
    instance normalisation: their mean is nearly the same for all images. AutoSAM's U-Net is pooled
    behind a block without normalisation, too. Views of all processes are contrasted with each
    other.

    Args:
        encoder: (B, 3, S, S) -> (B, C, h, w).
        channels: C.
    """

    loss: NTXentLoss
    head: nn.Module

    def __init__(self, encoder: nn.Module, channels: int, temperature: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            SimCLRProjectionHead(channels, channels, PROJECTED),
        )
        self.loss = NTXentLoss(temperature, gather_distributed=True)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """() loss of normalised views (B, 3, S, S)."""
        projected = self.head(self.encoder(torch.cat([first, second]))).float()  # (2 B, P)
        loss: Tensor = self.loss(*projected.chunk(2))
        return loss


class SimclrStage(Stage):
    """A network's encoder under SimCLR; checkpoints keep it as stage one keeps SAM's.

    Raises:
        UserError: Shard sets that cannot be used, or a network without a part to pretrain.
    """

    curves = ("loss",)
    dataset: ShardMixture
    model: Simclr

    def __init__(self, config: SimclrConfig, device: torch.device) -> None:
        self.config, self.device, self.workers = config, device, config.data.workers
        views = SimCLRTransform(
            config.image_size,
            cj_strength=config.jitter,
            min_scale=config.min_scale,
            normalize=None,  # done as in training with labels
        )
        shards = config.data.shards
        self.dataset = ShardMixture(
            [shards] if isinstance(shards, str) else shards,
            split=config.data.split,
            seed=config.seed,
            shuffle_shards=config.data.shuffle_shards,
            transform=TwoViews(views),
        )
        network = config.network.build(Network, config.image_size, ("any",))
        if network.for_stacks:
            raise UserError("network: SimCLR sees single images; leave out volumes")
        self.encoder = network.encoder()
        with torch.no_grad():
            blank = torch.zeros(1, 3, config.image_size, config.image_size)
            channels = self.encoder(blank).shape[1]
        self.model = Simclr(self.encoder, channels, config.temperature)

    def collate(self, samples: list[Views]) -> Views:
        """One batch of several."""
        first, second, keys = zip(*samples, strict=True)
        return Views(torch.cat(first), torch.cat(second), [key for each in keys for key in each])

    def losses(
        self, model: nn.Module, batch: Views, seed: int
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss."""
        first, second = (
            normalise_pixels(each.to(self.device, non_blocking=True))
            for each in (batch.first, batch.second)
        )
        loss = model(first, second)
        return loss, {"loss": loss}

    def keys(self, batch: Views) -> Sequence[str]:
        """Record keys."""
        return batch.keys

    def bound(self, per_pass: int, processes: int) -> dict[str, Any]:
        """The images, wherever they lie, and how many are contrasted with each other.

        Raises:
            UserError: It is one.
        """
        if per_pass * processes < 2:
            raise UserError("optim.batch_size: a pass of one image has nothing to tell it from")
        sets = [part.fingerprint[:12] for part in self.dataset.sets]
        return {"data.shards of fingerprint": sets, "contrasted images": per_pass * processes}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Without the views of other processes."""
        self.model.loss.gather_distributed = False
        yield
        self.model.loss.gather_distributed = True

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Encoder and projection head, each in one file."""
        return {ENCODER: self.encoder.state_dict(), HEAD: self.model.head.state_dict()}

    def load(self, checkpoint: Checkpoint) -> None:
        """Encoder and projection head."""
        for name, module in ((ENCODER, self.encoder), (HEAD, self.model.head)):
            load_strictly(module, checkpoint.weights(name), checkpoint.weights_file(name))

    def describe(self) -> Iterable[str]:
        """Size of the encoder."""
        parameters = sum(parameter.numel() for parameter in self.encoder.parameters())
        name = self.config.network.class_path.rpartition(".")[2]
        yield f"encoder of {name}: {parameters / 1e6:.1f} M parameters"


def pretrain(config: SimclrConfig, resolved: str) -> None:
    """Run SimCLR to its last step, or until a signal asks it to stop."""
    train(SimclrStage, config, resolved)
