"""What one step starts from, a box, random clicks or a rough mask, and the correcting clicks."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from data_prep.common.errors import UserError
from finetune.data.dataset import SegmentationBatch
from finetune.model.prompt_encoder import MASK_STRIDE, Prompts, mask_logits
from finetune.model.segmenter import Segmenter
from finetune.prompts.boxes import boxes_of, jitter_box
from finetune.prompts.clicks import ClickSampling, random_clicks
from finetune.prompts.corrections import Clicks, Corrections
from finetune.prompts.masks import rough_mask
from finetune.prompts.prompting import Prompting, Round


@dataclass(frozen=True)
class ClicksAndBoxes(Prompting):
    """Predictions after the first prompts and after each round of correcting clicks.

    The image is encoded once; only the decoder runs again. Clicks are placed on the prediction of
    the round before (Mahadevan et al. 2018), at the decoder's own resolution of a quarter of the
    model's frame: errors are a sixteenth of the pixels, and the prediction need not be enlarged.
    After first clicks, a number of first rounds, uniform in 0..skipped_rounds, has no gradient
    (Sofiiuk et al. 2021, arXiv 2102.06583).
    """

    box_share: float = 0.5
    """Share of training steps that start from boxes; the others start from random clicks."""
    single_share: float = 0.5
    """Share of the steps with clicks that start from one click on the object, as users do."""
    box_jitter: float = 0.1
    """Standard deviation of a box's edges as a share of its side (SAM: 0.1, by at most 20
    pixels of 1024; the bound grows in proportion)."""
    clicks: ClickSampling = field(default_factory=ClickSampling)
    """Random clicks of the first round."""
    skipped_rounds: int = 0
    """In a step that starts from clicks, a random number of the first predictions, at most this
    many, is made without gradient and not trained on: many clicks are seen at little cost (as in
    RITM). A step that starts from boxes skips none, since users usually give just a box."""
    rounds: int = 3
    """Rounds of correcting clicks after the first prediction that is trained on."""
    previous_mask: bool = True
    """Give the last prediction's logits with each correcting click, as SAM was trained."""
    mask_share: float = 0.0
    """Share of all training steps that start from a rough mask, as an earlier segmentation gives
    it, rather than from boxes or clicks."""
    mask_roughness: float = 0.2
    """How rough that mask is, see `finetune.prompts.masks.rough_mask`."""
    mask_only_share: float = 0.0
    """Share of the later rounds that add no click: the last prediction is all that is new."""
    multimask: bool = True
    """Answer a single click or a box by SAM's three masks: trained by the best one's loss, and in
    use the one that the model expects most of. From the second click on there is one mask."""

    def __post_init__(self) -> None:
        for name in ("box_share", "single_share", "mask_share", "mask_only_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"prompts.{name} {getattr(self, name)} must lie in 0..1")
        for name in ("mask_share", "mask_only_share"):
            if getattr(self, name) and not self.previous_mask:
                raise UserError(f"prompts.{name} needs prompts.previous_mask")
        for name in ("box_jitter", "rounds", "skipped_rounds", "mask_roughness"):
            if getattr(self, name) < 0:
                raise UserError(f"prompts.{name} is {getattr(self, name)}; it must not be negative")

    @property
    def gives_masks(self) -> bool | None:
        """As its options say: rough masks first, or predictions with later clicks."""
        later = self.rounds or (self.skipped_rounds and self.box_share < 1)
        return self.previous_mask if later or self.mask_share else None

    @property
    def rough_masks(self) -> bool:  # type: ignore[override]
        """As its option says."""
        return self.mask_share > 0

    def prepare(self, batch: SegmentationBatch, rng: np.random.Generator) -> "First":
        """First prompts, and the truth at the decoder's resolution."""
        truths = batch.masks.cpu().numpy()
        # What is predicted on padding has no loss and draws no click.
        image_area = batch.valid[batch.image].cpu().numpy()
        boxes: Tensor | None = None
        masks: Tensor | None = None
        single = False
        clicks = [(np.empty((0, 2), np.int64), np.empty(0, np.int64)) for _ in truths]
        if self.mask_share and rng.random() < self.mask_share:
            rough = [rough_mask(truth, rng, self.mask_roughness) for truth in truths]
            masks = mask_logits(torch.from_numpy(np.stack(rough)).float())
        elif rng.random() < self.box_share:
            size = truths.shape[1:]
            jittered = [jitter_box(box, rng, size, self.box_jitter) for box in boxes_of(truths)]
            boxes = torch.from_numpy(np.stack(jittered)).float()
        else:
            single = rng.random() < self.single_share
            few = replace(self.clicks, max_positive=1, max_negative=0) if single else self.clicks
            clicks = [
                random_clicks(truth, rng, few, area)
                for truth, area in zip(truths, image_area, strict=True)
            ]
        corrections = Corrections(truths, image_area, truths.shape[-1] // MASK_STRIDE)
        return First(clicks, boxes, single, corrections, masks)

    def predictions(
        self,
        segmenter: Segmenter,
        embeddings: Tensor,
        batch: SegmentationBatch,
        rng: np.random.Generator,
    ) -> Iterator[Round]:
        """The skipped rounds, then `rounds + 1` trained ones."""
        first = batch.first or self.prepare(batch, rng)
        clicks, boxes = first.clicks, first.boxes
        starts_from_clicks = any(len(labels) for _, labels in clicks)
        skipped = int(rng.integers(self.skipped_rounds + 1)) if starts_from_clicks else 0
        means_several = first.single or boxes is not None or first.texts is not None
        ambiguous = self.multimask and means_several
        previous = first.masks
        for index in range(skipped + self.rounds + 1):
            prompts = Prompts(
                batch.image.cpu(),
                *padded(clicks),
                boxes=boxes,
                masks=previous,
                texts=first.texts,
            )
            with torch.set_grad_enabled(torch.is_grad_enabled() and index >= skipped):
                prompts = prompts.to(embeddings.device)
                decoded = segmenter.decode(embeddings, prompts, ambiguous and index == 0)
            yield Round(decoded, index >= skipped)
            if index == skipped + self.rounds:
                return
            low_res = decoded.picked().low_res.detach()
            if low_res.shape[-1] != batch.masks.shape[-1] // MASK_STRIDE:  # a network's own maps
                low_res = avg_pool2d(low_res, MASK_STRIDE)
            if self.previous_mask:
                previous = low_res
            if self.mask_only_share and rng.random() < self.mask_only_share:
                continue
            predictions = (low_res[:, 0] > 0).cpu().numpy()
            clicks = first.corrections.add(predictions, clicks, rng)


class First(NamedTuple):
    """What a batch's prompts start from; arrays, which a loader's worker hands over."""

    clicks: list[Clicks]
    boxes: Tensor | None
    """(M, 4), or None where the step starts from clicks."""
    single: bool
    """Whether each mask has one click on the object."""
    corrections: Corrections
    """Clicks that follow."""
    masks: Tensor | None = None
    """(M, 1, S / 4, S / 4) logits of rough masks, where the step starts from these."""
    texts: tuple[str, ...] | None = None
    """M texts, where the step starts from these."""


def padded(clicks: list[Clicks]) -> tuple[Tensor | None, Tensor | None]:
    """(M, n, 2) float points and (M, n) labels, filled up with label -1; None without any click."""
    n = max(len(labels) for _, labels in clicks)
    if n == 0:
        return None, None
    points = np.zeros((len(clicks), n, 2), np.float32)
    labels = np.full((len(clicks), n), -1, np.int64)
    for row, (placed, placed_labels) in enumerate(clicks):
        points[row, : len(placed_labels)] = placed
        labels[row, : len(placed_labels)] = placed_labels
    return torch.from_numpy(points), torch.from_numpy(labels)
