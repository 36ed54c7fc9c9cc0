"""Losses of masks given as logits.

Throughout: logits (B, K, H, W) of any float type, targets (B, K, H, W) bool or 0/1, and `valid`
(B, 1, H, W) bool, False where the image is padding and a pixel counts nothing. Sums run in float32
also under autocast. Each loss is computed for every mask by itself and averaged over the B x K
masks, so that small images and small objects weigh as much as large ones. Targets (B, 1, H, W) are
those of all K masks.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torch.nn.utils.rnn import pad_sequence

from data_prep.common.errors import UserError


def dice_loss(
    logits: Tensor, targets: Tensor, valid: Tensor | None = None, smooth: float = 1.0
) -> Tensor:
    """Soft Dice, 1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth), a scalar in 0..1.

    Denominator without squares and smooth 1 as in MaskFormer, from which SAM takes it. For an empty
    target that would be sum(p) / (sum(p) + smooth), which is close to 1 and nearly flat until all
    but a few pixels are gone. There the loss is log(1 + sum(p)) / log(1 + pixels) instead: it also
    falls from 1 to 0 as the prediction empties, but has a gradient at any size of the prediction.
    """
    return _dice(logits, targets, valid, smooth).mean()


def bce_loss(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Binary cross entropy, the mean over the valid pixels of each mask; a scalar."""
    return _bce(logits, targets, valid).mean()


def focal_loss(
    logits: Tensor,
    targets: Tensor,
    valid: Tensor | None = None,
    gamma: float = 2.0,
    alpha: float = 0.25,
) -> Tensor:
    """Focal loss (Lin et al. 2017, arXiv 1708.02002, eq. 5), averaged as `bce_loss`; a scalar.

    -alpha_t (1 - p_t)^gamma log(p_t), where p_t is the probability given to the truth, and alpha_t
    is alpha on the object and 1 - alpha on the background.
    """
    return _focal(logits, targets, valid, gamma, alpha).mean()


def _dice(logits: Tensor, targets: Tensor, valid: Tensor | None, smooth: float = 1.0) -> Tensor:
    """`dice_loss` of each mask, (B, K)."""
    inside = _inside(logits, valid)
    probability = logits.float().sigmoid() * inside
    truth = targets.float() * inside
    overlap = (probability * truth).sum((-2, -1))  # (B, K)
    total = probability.sum((-2, -1)) + truth.sum((-2, -1))
    pixels = inside.sum((-2, -1)).clamp(min=1)
    found = total.log1p() / pixels.log1p()
    return torch.where(
        truth.flatten(-2).any(-1), 1 - (2 * overlap + smooth) / (total + smooth), found
    )


def _bce(
    logits: Tensor, targets: Tensor, valid: Tensor | None, object_weight: float = 1.0
) -> Tensor:
    """`bce_loss` of each mask, (B, K), the object's pixels weighted."""
    truth = targets.float().expand(logits.shape)
    weight = None if object_weight == 1 else torch.tensor(object_weight, device=logits.device)
    entropy = binary_cross_entropy_with_logits(
        logits.float(), truth, reduction="none", pos_weight=weight
    )
    return _mean_inside(entropy, _inside(logits, valid))


def _focal(
    logits: Tensor, targets: Tensor, valid: Tensor | None, gamma: float, alpha: float
) -> Tensor:
    """`focal_loss` of each mask, (B, K)."""
    truth = targets.float().expand(logits.shape)
    entropy = binary_cross_entropy_with_logits(logits.float(), truth, reduction="none")
    probability = logits.float().sigmoid()
    wrong = probability * (1 - truth) + (1 - probability) * truth  # 1 - p_t
    balance = alpha * truth + (1 - alpha) * (1 - truth)
    return _mean_inside(balance * wrong**gamma * entropy, _inside(logits, valid))


def mask_iou(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """IoU of masks logits > 0 with their targets, (B, K) float32, no gradient. Both empty: 1."""
    inside = _inside(logits, valid).bool()
    prediction = (logits.detach() > 0) & inside
    truth = targets.bool() & inside
    overlap = (prediction & truth).sum((-2, -1))
    union = (prediction | truth).sum((-2, -1))
    return torch.where(union > 0, overlap / union.clamp(min=1), 1.0)


def mask_dice(logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
    """Dice of masks logits > 0 with their targets, (B, K) float32, no gradient. Both empty: 1."""
    iou = mask_iou(logits, targets, valid)
    return 2 * iou / (1 + iou)


def join_slices(values: Tensor, group: Tensor) -> Tensor:
    """What is known of each slice of several groups, as one tall image for each group.

    Args:
        values: (M, 1, H, W), a mask, logits or valid pixels of each slice.
        group: (M,) int64, to which group, such as a volume, a slice belongs.

    Returns:
        (G, 1, D H, W) of G groups, the slices of each in their order below each other; groups of
        less than D slices are filled up with zeros.
    """
    order = group.argsort(stable=True)
    counts = group.unique(return_counts=True)[1].tolist()
    slices = pad_sequence(list(values[order].split(counts)), batch_first=True)  # (G, D, 1, H, W)
    return slices.transpose(1, 2).flatten(2, 3)


class MaskLoss(ABC):
    """Loss of predicted masks.

    Attributes:
        whole_batch: Whether all masks of a target that are in one pass are given to it as one large
            mask: those of a step's batch in one process, divided by `optim.accumulate`.
    """

    whole_batch: bool = False

    @abstractmethod
    def __call__(
        self,
        logits: Tensor,
        targets: Tensor,
        valid: Tensor | None = None,
        iou_prediction: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch.

        Args:
            logits: (B, K, H, W); more masks than targets are alternatives, from which one will be
                picked by `iou_prediction`.
            targets: (B, K, H, W), or (B, 1, H, W).
            valid: (B, 1, H, W) bool, False on padding; None if there is none.
            iou_prediction: (B, K), the decoder's own estimate of each mask's IoU.

        Returns:
            The scalar to minimise, and its terms, detached, by name.
        """


@dataclass(frozen=True)
class SegmentationLoss(MaskLoss):
    """Weighted sum of overlap, pixel and IoU terms; a term of weight 0 is not computed.

    Of alternatives only the best mask of each prompt is trained (SAM, arXiv 2304.02643, section 3);
    the IoU is learned of all.
    """

    dice: float = 1.0
    """Weight of soft Dice."""
    bce: float = 1.0
    """Weight of binary cross entropy."""
    bce_object: float = 1.0
    """Weight of the object's pixels in binary cross entropy; those of the background have 1."""
    focal: float = 0.0
    """Weight of focal loss (SAM: 20, with dice 1 and bce 0)."""
    iou: float = 1.0
    """Weight of the squared error of the IoU the decoder predicts; 0 if it predicts none."""
    focal_gamma: float = 2.0
    """Exponent of the focal loss: how little easy pixels count."""
    focal_alpha: float = 0.25
    """Share of the object's pixels in the focal loss, 0..1."""
    whole_batch: bool = False
    """Whether a target's masks in one pass (`optim.batch_size`, divided by the number of processes
    and by `optim.accumulate`, images) are judged together, as one large mask, and not one by one:
    those without the target then weigh little. It needs `iou` 0."""

    def __post_init__(self) -> None:
        for name in ("dice", "bce", "bce_object", "focal", "iou", "focal_gamma"):
            if getattr(self, name) < 0:
                raise UserError(f"loss.{name} is {getattr(self, name)}; it must not be negative")
        if self.dice + self.bce + self.focal == 0:
            raise UserError("loss.dice, loss.bce and loss.focal are all 0; set one above 0")
        if self.whole_batch and self.iou:
            raise UserError(
                "loss.whole_batch: the IoU of one mask cannot be learned then; set loss.iou to 0"
            )
        if not 0 <= self.focal_alpha <= 1:
            raise UserError(f"loss.focal_alpha is {self.focal_alpha}; it must lie in 0..1")

    def __call__(
        self,
        logits: Tensor,
        targets: Tensor,
        valid: Tensor | None = None,
        iou_prediction: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and the terms of non-zero weight, unweighted.

        Raises:
            UserError: The IoU term has weight, and there is no prediction of it.
        """
        masks = {}
        if self.dice:
            masks["dice"] = _dice(logits, targets, valid)
        if self.bce:
            masks["bce"] = _bce(logits, targets, valid, self.bce_object)
        if self.focal:
            masks["focal"] = _focal(logits, targets, valid, self.focal_gamma, self.focal_alpha)
        if logits.shape[1] > targets.shape[1]:
            sums = sum(getattr(self, name) * term.detach() for name, term in masks.items())
            best = torch.as_tensor(sums).argmin(1, keepdim=True)  # (B, 1)
            masks = {name: term.take_along_dim(best, 1) for name, term in masks.items()}
        terms = {name: term.mean() for name, term in masks.items()}
        if self.iou:
            if iou_prediction is None:
                raise UserError("this decoder predicts no IoU; set loss.iou to 0")
            iou = mask_iou(logits, targets, valid)  # of all alternatives: it picks among them
            terms["iou"] = mse_loss(iou_prediction.float(), iou)
        total = torch.stack([getattr(self, name) * term for name, term in terms.items()]).sum()
        return total, {name: term.detach() for name, term in terms.items()}


class NoMaskLoss(MaskLoss):
    """Nothing is asked of the masks: a network's `auxiliary_loss` is all that is minimised."""

    def __call__(
        self,
        logits: Tensor,
        targets: Tensor,
        valid: Tensor | None = None,
        iou_prediction: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """0, and no terms."""
        return logits.new_zeros((), dtype=torch.float32), {}


def _inside(logits: Tensor, valid: Tensor | None) -> Tensor:
    """Float weights, 1 on valid pixels and 0 on padding, that broadcast against the logits."""
    if valid is None:
        return torch.ones((), device=logits.device).expand(logits.shape)
    return valid.float().expand(logits.shape)


def _mean_inside(values: Tensor, inside: Tensor) -> Tensor:
    """Mean over each mask's valid pixels, (B, K). A mask without valid pixels is 0."""
    return (values * inside).sum((-2, -1)) / inside.sum((-2, -1)).clamp(min=1)
