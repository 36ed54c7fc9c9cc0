"""Losses on images that are not trained on."""

import numpy as np
import torch
from accelerate import Accelerator

from data_prep.common.errors import UserError
from data_prep.loader.mixture import ShardMixture
from pretrain.encoder.pixels import normalise_pixels
from pretrain.engine.evaluator import Judgement
from pretrain.engine.optim import step_seed
from pretrain.engine.stage import Stage
from pretrain.probes.evaluator import StageOneEvaluator, roots_of
from pretrain.transform import collate


class HeldOutLoss(StageOneEvaluator):
    """Each objective's loss on images that are not trained on, always the same in the same way.

    Their crops, masks and partners are drawn from a fixed seed, and batches are the same whatever
    the number of processes, which take turns with them; so only the weights move these numbers.

    Args:
        every: Steps between judgements.
        shards: Shard sets; none: those of the run.
        split: Split of these sets.
        max_images: Use at most so many images, drawn at random.
        batch_size: Images per forward pass, which for e-Mix are those that are contrasted.
        seed: Seed of the choice of images and of all that is drawn.
    """

    def __init__(
        self,
        every: int = 500,
        shards: tuple[str, ...] = (),
        split: str = "test",
        max_images: int = 256,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(every)
        if min(max_images, batch_size) < 2:
            raise UserError("max_images and batch_size must be at least 2")
        self.shards, self.split = shards, split
        self.max_images, self.batch_size, self.seed = max_images, batch_size, seed

    def prepare(self, stage: Stage, accelerator: Accelerator) -> None:
        """Find the images.

        Raises:
            UserError: A set without this split, or without images there.
        """
        trained = self.of(stage)
        roots = self.shards or roots_of(trained.config)
        self.images = ShardMixture(
            roots, None, self.split, self.seed, transform=trained.dataset.transform
        )
        seen = {part.fingerprint for part in trained.dataset.sets}
        if any(part.fingerprint in seen for part in self.images.sets):
            raise UserError(f"evaluators: split {self.split!r} is what the run trains on")
        chosen = np.random.default_rng(self.seed).permutation(len(self.images))[: self.max_images]
        size = min(self.batch_size, len(chosen))
        whole = len(chosen) // size * size  # as many in each, which e-Mix's loss depends on
        self.batches = [chosen[i : i + size].tolist() for i in range(0, whole, size)]

    def evaluate(self, stage: Stage, accelerator: Accelerator) -> Judgement:
        """The mean loss of each objective over all batches."""
        trained = self.of(stage)
        model, device = trained.model, accelerator.device
        sums = torch.zeros(len(model.objectives), dtype=torch.float64, device=device)
        names = list(model.objectives)
        with model.alone():
            for number in range(
                accelerator.process_index, len(self.batches), accelerator.num_processes
            ):
                batch = collate([self.images[index, index] for index in self.batches[number]])
                images = normalise_pixels(batch.images.to(device))
                seed = step_seed(self.seed, number, 0, 0)
                with accelerator.autocast():
                    losses = model(images, torch.Generator().manual_seed(seed), batch.groups)
                sums += torch.stack([losses[name].double() for name in names])
        means = (accelerator.reduce(sums, "sum") / len(self.batches)).tolist()
        return Judgement(numbers=dict(zip(names, means, strict=True)))
