"""Losses against loops over masks and pixels, and their gradients against finite differences."""

import math

import pytest
import torch

from data_prep.common.errors import UserError
from finetune.model.losses import (
    SegmentationLoss,
    bce_loss,
    dice_loss,
    focal_loss,
    mask_dice,
    mask_iou,
)

LOSSES = [dice_loss, bce_loss, focal_loss]


def batch(seed=0, dtype=torch.float32):
    """Two images of different valid sizes, three masks each, one of them empty."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, 3, 5, 7, generator=generator, dtype=dtype)
    targets = torch.rand(2, 3, 5, 7, generator=generator) < 0.4
    targets[0, 1] = False
    valid = torch.zeros(2, 1, 5, 7, dtype=torch.bool)
    valid[0, :, :3], valid[1, :, :, :6] = True, True
    return logits, targets, valid


def masks(logits, targets, valid):
    """For each mask the list of its valid (probability, truth) pairs."""
    for b in range(logits.shape[0]):
        for k in range(logits.shape[1]):
            yield [
                (1 / (1 + math.exp(-float(logits[b, k, y, x]))), int(targets[b, k, y, x]))
                for y in range(logits.shape[2])
                for x in range(logits.shape[3])
                if valid is None or valid[b, 0, y, x]
            ]


def literal_dice(pairs):
    if not any(t for _, t in pairs):
        return math.log(1 + sum(p for p, _ in pairs)) / math.log(1 + len(pairs))
    overlap = sum(p * t for p, t in pairs)
    return 1 - (2 * overlap + 1) / (sum(p for p, _ in pairs) + sum(t for _, t in pairs) + 1)


def literal_bce(pairs):
    return sum(-math.log(p if t else 1 - p) for p, t in pairs) / len(pairs)


def literal_focal(pairs):
    total = 0.0
    for p, t in pairs:
        truth, alpha = (p, 0.25) if t else (1 - p, 0.75)
        total -= alpha * (1 - truth) ** 2 * math.log(truth)
    return total / len(pairs)


def literal_iou(pairs):
    overlap = sum(p > 0.5 and t == 1 for p, t in pairs)
    union = sum(p > 0.5 or t == 1 for p, t in pairs)
    return overlap / union if union else 1.0


@pytest.mark.parametrize(
    ("loss", "literal"),
    [(dice_loss, literal_dice), (bce_loss, literal_bce), (focal_loss, literal_focal)],
)
@pytest.mark.parametrize("padded", [True, False])
def test_losses_equal_loops(loss, literal, padded):
    logits, targets, valid = batch()
    valid = valid if padded else None
    values = [literal(pairs) for pairs in masks(logits, targets, valid)]
    assert loss(logits, targets, valid).item() == pytest.approx(sum(values) / 6, rel=1e-5)
    assert loss(logits, targets.float(), valid) == loss(logits, targets, valid)


def test_object_pixels_can_weigh_more_in_the_cross_entropy():
    logits, targets, valid = batch()
    loss = SegmentationLoss(dice=0, bce=1, bce_object=2, iou=0)
    twice = []
    for pairs in masks(logits, targets, valid):
        terms = [-(2 * t * math.log(p) + (1 - t) * math.log(1 - p)) for p, t in pairs]
        twice.append(sum(terms) / len(terms))
    found, parts = loss(logits, targets, valid)
    assert found.item() == pytest.approx(sum(twice) / 6, rel=1e-5) and parts["bce"] == found


def test_iou_equals_loops():
    logits, targets, valid = batch()
    targets[0, 1], logits[0, 1] = False, -3.0  # both empty
    for region in (valid, None):
        expected = [literal_iou(pairs) for pairs in masks(logits, targets, region)]
        found = mask_iou(logits, targets, region)
        assert found.shape == (2, 3) and found.flatten().tolist() == pytest.approx(expected)
        assert found[0, 1] == 1.0


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_equal_finite_differences(loss):
    """In single precision, where the losses run, so with wide steps."""
    logits, targets, valid = batch(1)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits, targets, valid), logits)
    assert (gradient[(~valid).expand_as(gradient)] == 0).all()
    assert (gradient[valid.expand_as(gradient)] != 0).all()
    generator = torch.Generator().manual_seed(2)
    for _ in range(10):
        direction = torch.randn(logits.shape, generator=generator)
        step = 1e-2
        with torch.no_grad():
            after, before = (loss(logits + s * direction, targets, valid) for s in (step, -step))
        expected = ((after - before) / (2 * step)).item()
        assert (gradient * direction).sum().item() == pytest.approx(expected, abs=2e-4, rel=5e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_counts_nothing(loss):
    logits, targets, valid = batch(3)
    outside = ~valid.expand_as(logits)
    changed, flipped = logits.clone(), targets.clone()
    changed[outside], flipped[outside] = 50.0, ~targets[outside]
    assert loss(changed, flipped, valid) == loss(logits, targets, valid)
    assert loss(logits, targets, torch.zeros_like(valid)) == 0.0


@pytest.mark.parametrize("loss", LOSSES)
def test_perfect_masks_cost_nothing_and_extremes_stay_finite(loss):
    _, targets, valid = batch(4)
    right = (targets.float() * 2 - 1) * 200
    assert loss(right, targets, valid).item() == pytest.approx(0, abs=1e-6)
    wrong = (-right).requires_grad_()
    value = loss(wrong, targets, valid)
    value.backward()
    assert value > 0.5 and wrong.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_logits_are_summed_in_single(loss):
    """4096 equal terms: a sum in bfloat16 would stop growing at 256."""
    logits = torch.full((1, 1, 64, 64), 0.5, dtype=torch.bfloat16)
    targets = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    found = loss(logits, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(logits.float(), targets))


def test_focal_loss_without_focus_is_half_the_cross_entropy():
    logits, targets, valid = batch(5)
    found = focal_loss(logits, targets, valid, gamma=0.0, alpha=0.5)
    torch.testing.assert_close(found, bce_loss(logits, targets, valid) / 2)


def test_total_is_the_weighted_sum():
    logits, targets, valid = batch(6)
    estimate = torch.rand(2, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = SegmentationLoss(dice=0.5, bce=2.0, focal=20.0, iou=3.0)
    total, terms = loss(logits, targets, valid, estimate)
    actual = [literal_iou(pairs) for pairs in masks(logits, targets, valid)]
    squared = [(e - a) ** 2 for e, a in zip(estimate.flatten().tolist(), actual, strict=True)]
    assert terms["iou"].item() == pytest.approx(sum(squared) / 6, rel=1e-5)
    weighted = 0.5 * terms["dice"] + 2 * terms["bce"] + 20 * terms["focal"] + 3 * terms["iou"]
    torch.testing.assert_close(total.detach(), weighted)
    total.backward()
    assert (estimate.grad != 0).all() and not any(term.requires_grad for term in terms.values())


def test_terms_without_weight_are_left_out():
    logits, targets, valid = batch(7)
    total, terms = SegmentationLoss(bce=0.0, iou=0.0)(logits, targets, valid)
    assert list(terms) == ["dice"] and total == terms["dice"]
    loss = SegmentationLoss(dice=0.0, bce=0.0, focal=1.0, iou=0.0, focal_gamma=0.0, focal_alpha=0.5)
    total, _ = loss(logits, targets, valid)
    torch.testing.assert_close(total, bce_loss(logits, targets, valid) / 2)


def test_bad_configurations_are_refused():
    with pytest.raises(UserError, match="all 0"):
        SegmentationLoss(dice=0.0, bce=0.0)
    with pytest.raises(UserError, match=r"loss\.focal is -1"):
        SegmentationLoss(focal=-1)
    with pytest.raises(UserError, match="focal_alpha"):
        SegmentationLoss(focal_alpha=1.5)
    logits, targets, valid = batch(8)
    with pytest.raises(UserError, match=r"loss\.iou"):
        SegmentationLoss()(logits, targets, valid)


def test_of_alternatives_the_best_is_trained_and_the_iou_of_all():
    logits, targets, valid = batch(4)
    target = targets[:, :1]
    logits.requires_grad_()
    expected = torch.rand(2, 3, generator=torch.Generator().manual_seed(5))
    total, terms = SegmentationLoss()(logits, target, valid, expected)
    same = target.expand_as(logits)
    dices, entropies, ious = (
        torch.tensor([literal(pairs) for pairs in masks(logits.detach(), same, valid)]).view(2, 3)
        for literal in (literal_dice, literal_bce, literal_iou)
    )
    best = [min(range(3), key=lambda k: float(dices[b, k] + entropies[b, k])) for b in range(2)]
    found = terms["dice"].item(), terms["bce"].item(), terms["iou"].item()
    mean = [sum(float(each[b, best[b]]) for b in range(2)) / 2 for each in (dices, entropies)]
    assert found == pytest.approx((*mean, ((expected - ious) ** 2).mean().item()), rel=1e-5)
    total.backward()
    trained = logits.grad.abs().sum((-2, -1)) > 0
    assert trained.tolist() == [[k == best[b] for k in range(3)] for b in range(2)]


def test_what_is_not_there_is_learned_as_an_empty_mask_that_is_expected_to_be_right():
    torch.manual_seed(0)
    nothing = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    logits = (
        torch.randn(1, 3, 16, 16) + torch.tensor([3.0, 1.0, 2.0])[:, None, None]
    ).requires_grad_()
    iou = torch.full((1, 3), 0.5, requires_grad=True)
    assert dice_loss(logits, nothing) > 0.9
    optimizer = torch.optim.Adam([logits, iou], 0.1)
    for _ in range(150):
        loss, _ = SegmentationLoss()(logits, nothing, None, iou)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # The best of the three is trained; the others find something, and are expected to be wrong.
    assert [bool((mask > 0).any()) for mask in logits[0]] == [True, False, True]
    assert mask_iou(logits, nothing).tolist() == [[0, 1, 0]]
    torch.testing.assert_close(iou, torch.tensor([[0.0, 1.0, 0.0]]), atol=0.05, rtol=0)
    assert mask_dice(logits, nothing)[0, int(iou.argmax())] == 1
