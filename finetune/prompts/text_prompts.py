"""Texts as a training step gives them: for one target or several, or for one that is not there."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from data_prep.common.errors import UserError
from data_prep.common.files import sha256
from finetune.data.dataset import SegmentationBatch
from finetune.model.prompt_encoder import MASK_STRIDE
from finetune.model.segmenter import NO_TEXTS, Segmenter
from finetune.prompts.corrections import Corrections
from finetune.prompts.prompting import Prompting, Round
from finetune.prompts.simulate import ClicksAndBoxes, First
from finetune.prompts.text_bank import TextBank


@dataclass
class Texts(Prompting):
    """A text first, then clicks that correct what it gave.

    The truth of a text is the union of the targets it names; of one for a target that the image is
    known not to hold, an empty mask.
    """

    bank: str = ""
    """File of texts for each target, such as configs/text/amos.yaml."""
    texts: int = 2
    """Texts per image."""
    several_share: float = 0.25
    """Share of the texts that name several targets, where the image has masks of several."""
    absent_share: float = 0.25
    """Share of the texts that name a target that is not in the image, where there is one."""
    rounds: int = 1
    """Rounds of correcting clicks after the prediction for the text."""
    previous_mask: bool = True
    """Give the last prediction's logits with each correcting click, as SAM was trained."""
    text_multimask: bool = False
    """Answer a text by SAM's three masks, as a single click is: trained by the best one's loss, and
    in use the one that the model expects most of. Then masks are learned whatever the words are,
    and only what is expected of them depends on these, which takes longer to learn."""

    asks_for_absent = True

    def __post_init__(self) -> None:
        for name in ("several_share", "absent_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"prompts.{name} {getattr(self, name)} must lie in 0..1")
        self._targets: tuple[str, ...] = ()
        if self.texts < 1 or self.rounds < 0:
            raise UserError("prompts.texts must be at least 1, and prompts.rounds not negative")

    @cached_property
    def _bank(self) -> TextBank:
        return TextBank(self.bank)

    @cached_property
    def _rounds(self) -> ClicksAndBoxes:
        return ClicksAndBoxes(
            rounds=self.rounds, previous_mask=self.previous_mask, multimask=self.text_multimask
        )

    @property
    def gives_masks(self) -> bool | None:
        """As its options say."""
        return self._rounds.gives_masks

    def begin(self, segmenter: Segmenter) -> None:
        """Read the texts.

        Raises:
            UserError: The model takes no texts, or a target has none.
        """
        if segmenter.text_encoder is None:
            raise UserError(f"prompts: {NO_TEXTS}")
        self._bank.check(segmenter.targets)
        self._targets = segmenter.targets
        self.digest = sha256(self._bank.path)

    def posed(self, batch: SegmentationBatch, rng: np.random.Generator) -> SegmentationBatch:
        """`texts` objects for each image, each of them what a text names."""
        asked = [
            (image, *self._asked(batch, image, rng))
            for image in range(len(batch.images))
            for _ in range(self.texts)
        ]
        images, targets, masks, texts = zip(*asked, strict=True)
        posed = replace(
            batch,
            image=torch.tensor(images),
            targets=torch.tensor(targets),
            masks=torch.stack(masks),
        )
        truths, area = posed.masks.numpy(), batch.valid[posed.image].numpy()
        corrections = Corrections(truths, area, truths.shape[-1] // MASK_STRIDE)
        nowhere = [(np.empty((0, 2), np.int64), np.empty(0, np.int64)) for _ in truths]
        return replace(posed, first=First(nowhere, None, False, corrections, texts=texts))

    def _asked(
        self, batch: SegmentationBatch, image: int, rng: np.random.Generator
    ) -> tuple[int, Tensor, str]:
        """A target, the mask (S, S) of what a text for it names, and the text."""
        rows = torch.nonzero(batch.image == image)[:, 0].numpy()  # its masks
        names = self._targets
        absent = [target for target in range(len(names)) if target not in batch.held[image]]
        if absent and (not len(rows) or rng.random() < self.absent_share):
            target = absent[int(rng.integers(len(absent)))]
            nothing = torch.zeros_like(batch.valid[image])
            return target, nothing, self._bank.draw([names[target]], rng)
        several = len(rows) > 1 and rng.random() < self.several_share
        count = int(rng.integers(2, len(rows) + 1)) if several else 1
        chosen = rng.choice(rows, size=count, replace=False)
        targets = batch.targets[chosen].tolist()
        text = self._bank.draw([names[target] for target in targets], rng)
        return targets[0], batch.masks[chosen].any(0), text

    def predictions(
        self,
        segmenter: Segmenter,
        embeddings: Tensor,
        batch: SegmentationBatch,
        rng: np.random.Generator,
    ) -> Iterator[Round]:
        """One round for the text, and `rounds` with clicks."""
        if batch.first is None:
            raise ValueError("the batch must come from `posed`")
        yield from self._rounds.predictions(segmenter, embeddings, batch, rng)
