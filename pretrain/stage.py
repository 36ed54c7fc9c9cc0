"""Stage one as the engine trains it: shard sets, the encoder and its objectives."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from data_prep.common.errors import UserError
from data_prep.loader.mixture import ShardMixture
from pretrain.augment import Augmentation
from pretrain.config import PretrainConfig
from pretrain.encoder.pixels import normalise_pixels
from pretrain.encoder.sam import build_encoder
from pretrain.encoder.weights import ENCODER, load_strictly
from pretrain.engine.checkpoint import Checkpoint
from pretrain.engine.loop import train
from pretrain.engine.stage import Stage
from pretrain.objectives.base import Objective
from pretrain.objectives.together import PretrainModel
from pretrain.sizes import ATTENTION_WINDOW, PATCH, SIZES, size_name
from pretrain.transform import PretrainBatch, PretrainSample, PretrainTransform, collate

OBJECTIVES = "objectives"
"""Name of the objectives' weights in a checkpoint."""


class PretrainStage(Stage):
    """The encoder under its objectives.

    Raises:
        UserError: Shard sets, weights or objectives that cannot be used.
    """

    dataset: ShardMixture
    model: PretrainModel

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.dataset, self.workers = build_dataset(config), config.data.workers
        self.damaged = self.dataset.damaged
        self.encoder = build_encoder(config.encoder_size, config.start_from)
        self.encoder.recompute_blocks = config.recompute_blocks
        self.objectives = build_objectives(config, self.encoder.size.width)
        self.model = PretrainModel(self.encoder, self.objectives)
        self.curves = list(self.objectives)
        if config.compile:
            for block in self.encoder.blocks:
                block.compile()

    def collate(self, samples: list[PretrainSample]) -> PretrainBatch:
        """Images, keys and groups."""
        return collate(samples)

    def losses(
        self, model: nn.Module, batch: PretrainBatch, seed: int
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Their weighted sum, and each objective's loss."""
        images = normalise_pixels(batch.images.to(self.device, non_blocking=True))
        losses = model(images, torch.Generator().manual_seed(seed), batch.groups)
        return self.model.total(losses), losses

    def keys(self, batch: PretrainBatch) -> Sequence[str]:
        """Record keys."""
        return batch.keys

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Encoder and objectives, each in one file."""
        return {
            ENCODER: self.encoder.state_dict(),
            OBJECTIVES: self.model.objectives.state_dict(),
        }

    def documents(self) -> dict[str, dict[str, str | int]]:
        """What the encoder is."""
        name, pixels = size_name(self.encoder.size), self.config.image_size
        return {ENCODER: {"name": name, "image_size": pixels}}

    def bound(self, per_pass: int, processes: int) -> dict[str, Any]:
        """The images, wherever they lie, and how many each objective contrasts with each other."""
        sets = [part.fingerprint[:12] for part in self.dataset.sets]
        bound: dict[str, Any] = {"data.shards of fingerprint": sets}
        for name, objective in self.objectives.items():
            if contrasted := objective.contrasted(per_pass, processes):
                bound[f"{name}: contrasted images"] = contrasted
        return bound

    def alone(self) -> AbstractContextManager[None]:
        """Without the negatives of other processes."""
        return self.model.alone()

    def flops(self) -> float:
        """Of the encoder and the objectives' decoders, forward and backward."""
        return self.model.flops(self.config.image_size)

    def savings(self) -> Sequence[str]:
        """Recomputed blocks, or the next smaller encoder."""
        found = [] if self.config.recompute_blocks else ["--recompute_blocks true"]
        names = list(SIZES)
        size = size_name(self.encoder.size)
        if self.config.start_from is None and size in names[1:]:
            found.append(f"--encoder_size {names[names.index(size) - 1]}")
        return found

    def load(self, checkpoint: Checkpoint) -> None:
        """Encoder and objectives."""
        modules: dict[str, nn.Module] = {ENCODER: self.encoder, OBJECTIVES: self.model.objectives}
        for name, module in modules.items():
            load_strictly(module, checkpoint.weights(name), checkpoint.weights_file(name))

    def describe(self) -> Iterable[str]:
        """Size of the encoder, and the share of each shard set."""
        parameters = sum(p.numel() for p in self.encoder.parameters())
        yield f"{size_name(self.encoder.size)}: {parameters / 1e6:.1f} M parameters"
        shards = self.config.data.shards
        roots = [shards] if isinstance(shards, str) else shards
        for root, part, count in zip(roots, self.dataset.sets, self.dataset.counts, strict=True):
            share = count / len(self.dataset)
            yield f"  {root}: {len(part)} images, {share:.0%} of the samples"

    def draw(self) -> dict[str, Figure]:
        """What each objective draws of itself."""
        images = images_to_draw(self.dataset).to(self.device)
        figures: dict[str, Figure] = {}
        for objective in self.objectives.values():
            figures |= objective.draw(self.encoder, images)
        return figures


def build_dataset(config: PretrainConfig) -> ShardMixture:
    """The training images of one or several shard sets."""
    chosen = config.data.augmentation
    shards: Sequence[str | Path] = (
        [config.data.shards] if isinstance(config.data.shards, str) else config.data.shards
    )
    return ShardMixture(
        shards,
        config.data.weights,
        config.data.split,
        config.seed,
        config.data.shuffle_shards,
        PretrainTransform(
            config.image_size,
            config.data.min_scale,
            config.data.flip,
            chosen.build(Augmentation) if chosen is not None else None,
        ),
        damaged=config.output / "damaged.jsonl" if config.data.damaged == "skip" else None,
    )


def build_objectives(config: PretrainConfig, width: int) -> dict[str, Objective]:
    """The objectives that are on, for an encoder of this width.

    Raises:
        UserError: None is on, or one cannot run at this image size.
    """
    built = {name: chosen.build(Objective, width) for name, chosen in config.objectives.items()}
    for name, objective in built.items():
        if objective.weight < 0:
            raise UserError(f"objectives.{name}.weight is {objective.weight}; expected 0 or more")
    active = {name: objective for name, objective in built.items() if objective.weight > 0}
    if not active:
        raise UserError("objectives: none is on; give at least one a weight above 0")
    exact = PATCH * ATTENTION_WINDOW
    for name, objective in active.items():
        if config.image_size % exact and objective.keep_ratio < 1:
            raise UserError(
                f"image_size {config.image_size} pads attention windows, so {name} cannot drop "
                f"tokens exactly; use a multiple of {exact}, or keep_ratio 1 for e-Mix and ShED"
            )
    return active


def images_to_draw(dataset: ShardMixture, count: int = 6, among: int = 48) -> Tensor:
    """(count, 3, S, S) images spread over a data set that show more than a plain ground.

    Of `among` images at even distances, each run of neighbours gives the one with the largest
    standard deviation.
    """
    indices = np.linspace(0, len(dataset) - 1, min(among, len(dataset))).astype(int)
    runs = np.array_split(indices, min(count, len(indices)))
    samples = [
        max((dataset[int(i)] for i in run), key=lambda sample: sample.pixels.float().std())
        for run in runs
    ]
    return normalise_pixels(collate(samples).images)


def pretrain(config: PretrainConfig, resolved: str) -> None:
    """Run stage one to its last step, or until a signal asks it to stop."""
    train(PretrainStage, config, resolved)
