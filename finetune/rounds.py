"""Loss of a batch over the rounds of prompts."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from finetune.data.dataset import SegmentationBatch
from finetune.data.embeddings import EmbeddingCache
from finetune.model.decoder import Decoded
from finetune.model.losses import MaskLoss, join_slices, mask_dice
from finetune.model.network import Network
from finetune.model.segmenter import Segmenter
from finetune.prompts.prompting import Prompting, Truth
from pretrain.encoder.pixels import normalise_pixels
from pretrain.encoder.sam import SamEncoder
from pretrain.engine.one_by_one import mean_one_by_one


class PromptedLoss(nn.Module):
    """Loss of a batch over all prompt rounds, as one module for distributed training.

    Attributes:
        mean: Takes the mean of rounds' losses, as `mean_one_by_one`.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        prompting: Prompting,
        loss: MaskLoss,
        cache: EmbeddingCache | None = None,
    ) -> None:
        super().__init__()
        self.segmenter, self.prompting, self.loss = segmenter, prompting, loss
        self.cache = cache
        self.mean: Callable[..., Tensor] = mean_one_by_one

    def forward(
        self,
        batch: SegmentationBatch,
        rng: np.random.Generator,
        rounds: Iterator[dict[str, Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        """`loss`, the mean over trained rounds, and the Dice of the first and the last round.

        Dice is that of the mask that would be used, not of the best of several.

        Args:
            rounds: From `each_round`: the result is the next one of these.
        """
        if rounds is not None:
            return next(rounds)
        dices: list[Tensor] = []
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        loss = self.mean(
            lambda embeddings: self._losses(embeddings, batch, rng, dices),
            self._encode(batch, rng),
            trained,
        )
        return {"loss": loss, "dice_first": dices[0], "dice_last": dices[-1]}

    def each_round(
        self, batch: SegmentationBatch, rng: np.random.Generator
    ) -> Iterator[dict[str, Tensor]]:
        """For each round its `loss`, made with the weights of the moment when it is asked for.

        Beside it the `mean` loss of the rounds so far, and their first and last Dice.
        """
        dices: list[Tensor] = []
        losses: list[Tensor] = []
        for loss in self._losses(self._encode(batch, rng), batch, rng, dices):
            losses.append(loss.detach())
            mean = torch.stack(losses).mean()
            yield {"loss": loss, "mean": mean, "dice_first": dices[0], "dice_last": dices[-1]}

    def _losses(
        self,
        embeddings: Tensor,
        batch: SegmentationBatch,
        rng: np.random.Generator,
        dices: list[Tensor],
    ) -> Iterator[Tensor]:
        """Losses of the trained rounds, each made when it is asked for; `dices` gets their Dice."""
        given = Truth(batch.masks, batch.image)
        rounds = self.prompting.predictions(self.segmenter, embeddings, batch, rng)
        for decoded, trained, truth in rounds:
            asked = truth or given
            masks = asked.masks[:, None]  # (M, 1, S, S)
            valid = batch.valid[asked.image][:, None]
            if trained or not dices:
                dices.append(self.round_dice(decoded, masks, valid))
            if trained:
                loss = self.round_loss(decoded, masks, valid, self._groups(batch))
                auxiliary = self.auxiliary_loss(embeddings, batch)
                yield loss if auxiliary is None else loss + auxiliary

    def _encode(self, batch: SegmentationBatch, rng: np.random.Generator) -> Tensor:
        """Embeddings, or the maps that a network is trained on."""
        encoder = self.segmenter.image_encoder
        if self.cache is None:
            images = normalise_pixels(batch.images, batch.valid)
            if isinstance(encoder, Network):
                return encoder.training_maps(images, batch.stacks, self._truth(batch), rng)
            return self.segmenter.encode(images, batch.stacks)
        assert isinstance(encoder, SamEncoder)  # of a whole network nothing is frozen
        frozen = encoder.features if self.cache.before_neck else encoder
        found = self.cache.complete(
            batch, lambda images, valid: frozen(normalise_pixels(images, valid))
        )
        return encoder.neck(found) if self.cache.before_neck else found

    # What the following compute at full size is freed when they return.
    def round_dice(self, decoded: Decoded, masks: Tensor, valid: Tensor) -> Tensor:
        """() mean Dice of the masks (M, 1, S, S) that would be used of one round."""
        used = self.segmenter.upsample(decoded.picked().low_res.detach())
        return mask_dice(used, masks, valid).mean()

    def round_loss(
        self, decoded: Decoded, masks: Tensor, valid: Tensor, groups: Tensor | None = None
    ) -> Tensor:
        """() loss of one round, for masks and valid pixels (M, 1, S, S).

        Args:
            groups: (M,) to which group each mask belongs; the masks of a group have one loss
                together, as one large mask. None: each mask by itself.
        """
        logits = self.segmenter.upsample(decoded.low_res)
        if groups is not None:
            logits, masks, valid = (join_slices(x, groups) for x in (logits, masks, valid))
        return self.loss(logits, masks, valid, decoded.iou)[0]

    def auxiliary_loss(self, maps: Tensor, batch: SegmentationBatch) -> Tensor | None:
        """() loss that a network has besides that of the masks; see `Network.auxiliary_loss`."""
        network = self.segmenter.image_encoder
        if not isinstance(network, Network):
            return None
        return network.auxiliary_loss(maps, self._truth(batch), batch.valid)

    def _groups(self, batch: SegmentationBatch) -> Tensor | None:
        """(M,) which masks have one loss together; None: each has its own.

        Those of a target in the whole batch if the loss says so; for a network of volumes those of
        a target in a stack.
        """
        if self.loss.whole_batch:
            return batch.targets
        network = self.segmenter.image_encoder
        if not (isinstance(network, Network) and network.for_stacks):
            return None
        lengths = torch.tensor(batch.stacks or [1] * len(batch.images), device=batch.image.device)
        stacks = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
        return stacks[batch.image] * len(self.segmenter.targets) + batch.targets

    def _truth(self, batch: SegmentationBatch) -> Tensor:
        """Masks of every target in every image, (B, T, S, S) bool; empty where there is none."""
        size = (len(batch.images), len(self.segmenter.targets), *batch.masks.shape[1:])
        truth = batch.masks.new_zeros(size)
        truth[batch.image, batch.targets] = batch.masks
        return truth
