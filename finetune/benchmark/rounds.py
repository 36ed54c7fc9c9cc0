"""Training steps of several rounds: the image encoded once, and rounds freed one by one."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor

from finetune.benchmark.bench import MASKS_PER_IMAGE, Bench
from finetune.benchmark.clicks import masks_of
from finetune.data.dataset import SegmentationBatch
from finetune.model.decoder import Decoded
from finetune.model.losses import SegmentationLoss
from finetune.model.prompt_encoder import Prompts
from finetune.model.segmenter import Segmenter
from finetune.prompts.simulate import ClicksAndBoxes
from finetune.rounds import PromptedLoss
from pretrain.encoder.pixels import normalise_pixels
from pretrain.engine.memory import pass_memory


def rounds_tables(bench: Bench) -> None:
    """Time of a step, and peak memory of its tensors."""
    config = bench.config
    segmenter = bench.segmenter(adapters=True)
    batch = batch_of(bench)
    model = PromptedLoss(segmenter, prompting_of(config.rounds), SegmentationLoss())
    once, each = f"{config.rounds} rounds, image encoded once", "image encoded in each round"
    calls: dict[str, Callable[[], object]] = {
        each: lambda: encode_each_round(bench, model, batch),
        once: lambda: loss_of(bench, model, batch).backward(),
    }
    seconds = bench.clock(calls)
    segmenter.zero_grad()
    bench.results.add(
        f"Training steps of {config.batch_size} images with {MASKS_PER_IMAGE} masks each and"
        f" {config.rounds} rounds, MSA's adapters, {bench.model_name}, without the optimiser."
    )
    bench.results.table(
        ["step", "seconds", "ratio"],
        [[name, f"{s:.3f}", f"{seconds[each] / s:.2f} x"] for name, s in seconds.items()],
    )
    bench.results.add(
        "Peak memory of a step's tensors besides parameters and their gradients, where each round"
        " is differentiated and freed before the next, and where graphs are kept to the end."
    )
    bench.results.table(["step", "MB", "ratio"], _memory_rows(bench, segmenter, batch))


def _memory_rows(
    bench: Bench, segmenter: Segmenter, batch: SegmentationBatch
) -> Iterator[list[str]]:
    first = 0
    for rounds, kept in ((1, False), (bench.config.rounds, False), (bench.config.rounds, True)):
        model = PromptedLoss(segmenter, prompting_of(rounds), SegmentationLoss())
        if kept:
            model.mean = mean_of_all
        peak = pass_memory(list(model.parameters()), partial(loss_of, bench, model, batch))
        first = first or peak
        name = f"{rounds} round{'s' if rounds > 1 else ''}{', graphs kept' if kept else ''}"
        yield [name, f"{peak / 1e6:.0f}", f"{peak / first:.2f} x"]


def loss_of(bench: Bench, model: PromptedLoss, batch: SegmentationBatch) -> Tensor:
    """The loss of a step, always the same."""
    with bench.autocast():
        return model(batch, np.random.default_rng(0))["loss"]


def encode_each_round(bench: Bench, model: PromptedLoss, batch: SegmentationBatch) -> None:
    """A step in its plain form: in each round a forward and a backward pass of the whole model."""
    images = normalise_pixels(batch.images, batch.valid)
    masks, valid = batch.masks[:, None], batch.valid[batch.image][:, None]
    whole = cast(Segmenter, EncodesEachTime(model.segmenter))
    rounds = model.prompting.predictions(whole, images, batch, np.random.default_rng(0))
    while True:
        with bench.autocast():
            found = next(rounds, None)
            if found is None:
                return
            loss = model.round_loss(found.decoded, masks, valid) / bench.config.rounds
        loss.backward()


class EncodesEachTime:
    """Stands in for a segmenter whose embeddings are the images themselves."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter

    def decode(self, images: Tensor, prompts: Prompts, multimask: bool = False) -> Decoded:
        """Encode the images, then decode."""
        return self.segmenter.decode(self.segmenter.encode(images), prompts, multimask)


def mean_of_all(
    losses: Callable[[Tensor], Iterable[Tensor]], shared: Tensor, parameters: Sequence[Tensor]
) -> Tensor:
    """As `mean_one_by_one`, with the graphs of all losses kept to the end."""
    return torch.stack(list(losses(shared))).mean()


def prompting_of(rounds: int) -> ClicksAndBoxes:
    """Rounds of clicks, all of them trained."""
    return ClicksAndBoxes(box_share=0.0, single_share=0.0, rounds=rounds - 1)


def batch_of(bench: Bench) -> SegmentationBatch:
    """Noise with smooth masks, and their first clicks."""
    config, size = bench.config, bench.config.image_size
    count = config.batch_size * MASKS_PER_IMAGE
    images = torch.randint(0, 256, (config.batch_size, 3, size, size), dtype=torch.uint8)
    batch = SegmentationBatch(
        keys=[str(number) for number in range(config.batch_size)],
        images=images,
        valid=torch.ones(config.batch_size, size, size, dtype=torch.bool),
        masks=torch.from_numpy(masks_of(size, count)[0]),
        image=torch.arange(count) // MASKS_PER_IMAGE,
        targets=torch.zeros(count, dtype=torch.int64),
    )
    first = prompting_of(1).prepare(batch, np.random.default_rng(0))
    return replace(batch.to(bench.device), first=first)
