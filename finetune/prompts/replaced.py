"""Points that replace each other in rounds, as SAM-Med2D is trained (arXiv 2308.16184)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from data_prep.common.errors import UserError
from finetune.data.dataset import SegmentationBatch
from finetune.model.decoder import ALWAYS
from finetune.model.prompt_encoder import Prompts
from finetune.model.segmenter import Segmenter
from finetune.prompts.boxes import boxes_of, jitter_box
from finetune.prompts.prompting import Prompting, Round


@dataclass
class ReplacedPoints(Prompting):
    """A box or one point on the object, then rounds of points where the last prediction is wrong.

    Each round gives the last prediction's logits and new points instead of the old ones, drawn
    uniformly from the pixels that are wrong; two rounds, the last and a random one between it and
    the first of them, give the logits alone. Every round is answered by SAM's three masks, of which
    the best is trained and the one that the model expects most of goes on.
    """

    previous_mask = True
    multimask = ALWAYS

    box_share: float = 0.5
    """Share of training steps that start from boxes; the others start from one point."""
    box_jitter: float = 0.1
    """Standard deviation of a box's edges as a share of its side (SAM: 0.1, 20 pixels at most)."""
    rounds: int = 8
    """Rounds after the first prediction."""
    points: tuple[int, ...] = (1, 3, 5, 9)
    """Numbers of points of a round, one of which is drawn for each."""
    mask_only: bool = True
    """Give no points in the last round, nor in a random one between the first and the last."""
    decoder_only: bool = True
    """After the first round train the mask decoder alone: adapters and the prompt encoder learn
    from the first round. With a step per round the image encoder does so in any case, since its
    embeddings were made before the first step."""
    step_per_round: bool = True
    """Train on each round by a step of the optimiser of its own, before the next prediction is
    made; false: one step on the mean of all rounds. A step of the run is a batch in any case."""

    def __post_init__(self) -> None:
        if not 0 <= self.box_share <= 1:
            raise UserError(f"prompts.box_share {self.box_share} must lie in 0..1")
        for name in ("box_jitter", "rounds"):
            if getattr(self, name) < 0:
                raise UserError(f"prompts.{name} is {getattr(self, name)}; it must not be negative")
        if not self.points or min(self.points) < 1:
            raise UserError(f"prompts.points {list(self.points)}: give numbers of at least 1")
        self.steps = 1 + self.rounds if self.step_per_round else 1

    @property
    def gives_masks(self) -> bool | None:
        """In every round after the first prediction, if there is one."""
        return True if self.rounds else None

    def prepare(self, batch: SegmentationBatch, rng: np.random.Generator) -> "Start":
        """First prompts."""
        if rng.random() < self.box_share:
            truths = batch.masks.cpu().numpy()
            size = truths.shape[1:]
            jittered = [jitter_box(box, rng, size, self.box_jitter) for box in boxes_of(truths)]
            return Start(boxes=torch.from_numpy(np.stack(jittered)).float())
        nothing = torch.zeros_like(batch.masks)
        return Start(*wrong_points(nothing, batch.masks, batch.masks, 1, rng))

    def predictions(
        self,
        segmenter: Segmenter,
        embeddings: Tensor,
        batch: SegmentationBatch,
        rng: np.random.Generator,
    ) -> Iterator[Round]:
        """`rounds + 1` trained rounds."""
        start: Start = batch.first or self.prepare(batch, rng)
        prompts = Prompts(batch.image.cpu(), start.points, start.labels, start.boxes)
        prompts = prompts.to(embeddings.device)
        decoded = segmenter.decode(embeddings, prompts, True)
        yield Round(decoded, True)
        if self.decoder_only or self.step_per_round:
            embeddings = embeddings.detach()
        # What is predicted on padding has no loss and draws no point.
        valid = batch.valid[batch.image]
        last = self.rounds - 1
        alone = {last} if self.mask_only else set()
        if self.mask_only and last > 1:
            alone.add(int(rng.integers(1, last)))
        for index in range(self.rounds):
            low_res = decoded.picked().low_res.detach()
            points = labels = None
            if index not in alone:
                found = segmenter.upsample(low_res)[:, 0] > 0  # (M, S, S)
                number = int(rng.choice(self.points))
                points, labels = wrong_points(found, batch.masks, valid, number, rng)
            prompts = Prompts(prompts.image, points, labels, masks=low_res)
            parts = segmenter.decoder.parts
            with frozen(parts.get("prompt_encoder") if self.decoder_only else None):
                decoded = segmenter.decode(embeddings, prompts, True)
            yield Round(decoded, True)


class Start(NamedTuple):
    """The first prompts of a batch."""

    points: Tensor | None = None
    """(M, 1, 2)."""
    labels: Tensor | None = None
    """(M, 1)."""
    boxes: Tensor | None = None
    """(M, 4)."""


def wrong_points(
    found: Tensor, truths: Tensor, area: Tensor, number: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Points where predictions are wrong, drawn uniformly and with replacement.

    Only random numbers go to the device, and nothing comes back.

    Args:
        found: (M, S, S) bool, the predictions.
        truths: (M, S, S) bool.
        area: (M, S, S) bool, where points may fall.
        number: Points n of each mask.
        rng: Source of all randomness.

    Returns:
        points: (M, n, 2) float32 (x, y).
        labels: (M, n) int64, the truth there; -1, for no point, in masks without an error.
    """
    wrong = ((found ^ truths) & area).flatten(1)  # (M, S * S)
    rank = wrong.cumsum(1)
    count = rank[:, -1:]
    share = torch.from_numpy(rng.random((len(wrong), number), np.float32)).to(wrong.device)
    drawn = torch.minimum((share * count).long() + 1, count)  # which of the wrong pixels, from 1
    pixel = torch.searchsorted(rank, drawn)  # (M, n); the first pixel where there is none
    labels = torch.where(count > 0, truths.flatten(1).gather(1, pixel).long(), -1)
    side = truths.shape[2]
    return torch.stack([pixel % side, pixel // side], -1).float(), labels


@contextmanager
def frozen(module: nn.Module | None) -> Iterator[None]:
    """Inside, nothing learns about the parameters of a module."""
    parameters = [] if module is None else [p for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
