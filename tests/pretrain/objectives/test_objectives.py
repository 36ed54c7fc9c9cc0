"""Each objective against a slow literal version of its formula, and shared encoder calls."""

import math
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from pretrain.encoder.pixels import (
    PIXEL_MEAN,
    PIXEL_STD,
    from_common_scale,
    normalise_pixels,
    to_common_scale,
)
from pretrain.encoder.sam import SamEncoder, take
from pretrain.encoder.windows import balanced_keep
from pretrain.objectives import EMix, Inputs, MaskedAutoencoding, Objective, Plan, ShED, View
from pretrain.objectives.together import PretrainModel
from pretrain.sizes import EncoderSize

TINY = EncoderSize(width=32, depth=2, heads=2, global_blocks=(1,))
GRID = (14, 14)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_inputs(batch: int = 3, seed: int = 0, width: int = 32) -> Inputs:
    generator = seeded(seed)
    images = torch.randn(batch, 3, 224, 224, generator=generator)
    embeddings = torch.randn(batch, 196, width, generator=generator, requires_grad=True)
    return Inputs(images, embeddings, GRID, seeded(seed + 1))


@pytest.mark.parametrize("normalise", [True, False])
def test_mae_loss_is_the_mean_square_over_dropped_patches_only(normalise: bool) -> None:
    torch.manual_seed(0)
    objective = MaskedAutoencoding(
        32, decoder_width=16, decoder_heads=2, normalise_patches=normalise
    )
    inputs = make_inputs()
    plan = objective.plan(inputs)
    (view,) = plan.views
    assert view.keep.shape == (3, 49)
    encoded = torch.randn(3, 49, 32)
    loss = plan.loss([encoded])

    predicted = objective.predict(objective.decode(encoded, view.keep, GRID))
    mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    stored = inputs.images * std.view(3, 1, 1) + mean.view(3, 1, 1)  # 0 to 255
    pixels = (stored - mean.mean()) / std.mean()
    errors = []
    for b in range(3):
        kept = set(view.keep[b].tolist())
        assert len(kept) == 49
        for token in range(196):
            if token in kept:
                continue
            y, x = token // 14 * 16, token % 14 * 16
            patch = pixels[b, :, y : y + 16, x : x + 16]
            target = patch.permute(1, 2, 0).flatten()  # pixels row by row, channels innermost
            if normalise:
                target = (target - target.mean()) / (target.var(unbiased=True) + 1e-6).sqrt()
            errors.append((predicted[b, token] - target).square().mean())
    torch.testing.assert_close(loss, torch.stack(errors).mean())


def test_mae_decoder_puts_each_token_in_its_place_and_mask_tokens_elsewhere() -> None:
    torch.manual_seed(0)
    objective = MaskedAutoencoding(32, decoder_width=16, decoder_heads=2)
    objective.blocks, objective.decoder_norm = nn.Identity(), nn.Identity()
    keep = torch.stack([torch.randperm(196)[:49] for _ in range(2)])
    encoded = torch.randn(2, 49, 32)
    decoded = objective.decode(encoded, keep, GRID)
    position = objective.decode(encoded, torch.arange(49).expand(2, -1), GRID)[:, 49:]
    position = position - objective.mask_token
    embedded = objective.embed(objective.norm(encoded))
    for b in range(2):
        for token in range(49, 196):
            where = (keep[b] == token).nonzero()
            content = embedded[b, where.item()] if len(where) else objective.mask_token[0, 0]
            expected = content + position[b, token - 49]
            torch.testing.assert_close(decoded[b, token], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalise", [True, False])
def test_mae_targets_of_a_grey_image_are_the_same_in_all_channels(normalise: bool) -> None:
    grey = torch.randint(0, 256, (2, 1, 224, 224), generator=seeded(0), dtype=torch.uint8)
    objective = MaskedAutoencoding(32, normalise_patches=normalise)
    target = objective.targets(normalise_pixels(grey.expand(-1, 3, -1, -1)))
    by_channel = target.view(2, 196, 256, 3)
    torch.testing.assert_close(by_channel, by_channel[..., :1].expand_as(by_channel))
    even = objective.targets(normalise_pixels(torch.full((1, 3, 224, 224), 90, dtype=torch.uint8)))
    assert even.std() < 1e-3  # nothing but the value itself


def test_the_scale_common_to_all_channels_is_left_again() -> None:
    images = torch.randn(2, 3, 32, 32, generator=seeded(0))
    torch.testing.assert_close(from_common_scale(to_common_scale(images)), images)


def test_mae_predictions_do_not_depend_on_dropped_pixels() -> None:
    torch.manual_seed(0)
    encoder = SamEncoder(TINY)
    objective = MaskedAutoencoding(32, decoder_width=16, decoder_heads=2)
    images = torch.randn(1, 3, 224, 224)

    def predict(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        view = Inputs(pixels, *encoder.embed(pixels), seeded(5)).clean(0.25)
        tokens = encoder.encode(view.embeddings, GRID, view.keep)
        return objective.decode(tokens, view.keep, GRID), view.keep

    before, keep = predict(images)
    hidden = torch.ones(196, dtype=torch.bool)
    hidden[keep[0]] = False
    pixels = hidden.view(14, 14).repeat_interleave(16, 0).repeat_interleave(16, 1)
    changed = torch.where(pixels, torch.randn_like(images), images)
    torch.testing.assert_close(predict(changed)[0], before)
    assert not torch.allclose(predict(torch.where(pixels, images, changed + 1))[0], before)


@pytest.mark.parametrize("keep_ratio", [1.0, 0.25])
def test_emix_equals_the_formula_sample_by_sample(keep_ratio: float) -> None:
    torch.manual_seed(0)
    objective = EMix(32, keep_ratio=keep_ratio, alpha=0.7, projection=8)
    batch = 5
    inputs = make_inputs(batch, seed=3)
    plan = objective.plan(inputs)
    clean, mixed = plan.views
    encoded = [torch.randn(batch, clean.embeddings.shape[1], 32, requires_grad=True) for _ in "cm"]
    loss = plan.loss(encoded)

    # The same draws again, literally.
    generator = seeded(4)
    if keep_ratio < 1:
        again = Inputs(inputs.images, inputs.embeddings, GRID, generator)
        torch.testing.assert_close(again.clean(keep_ratio).keep, clean.keep)
    seed = int(torch.randint(2**62, (), generator=generator))
    shares = np.random.default_rng(seed).beta(0.7, 0.7, batch)
    partners = torch.randperm(batch, generator=generator).tolist()
    z = [F.normalize(objective.project(e.mean(0)), dim=0) for e in encoded[0]]
    z_mix = [F.normalize(objective.project(e.mean(0)), dim=0) for e in encoded[1]]
    expected = 0.0
    for i in range(batch):
        share = max(shares[i], 1 - shares[i])
        assert 0.5 <= share <= 1
        whole = share * inputs.embeddings[i] + (1 - share) * inputs.embeddings[partners[i]]
        blend = whole if mixed.keep is None else whole[mixed.keep[i]]
        torch.testing.assert_close(mixed.embeddings[i], blend, atol=1e-5, rtol=1e-5)
        logits = torch.stack([z_mix[i] @ other for other in z]) / 0.2
        log_p = logits - logits.exp().sum().log()
        expected -= (share * log_p[i] + (1 - share) * log_p[partners[i]]) / batch
    torch.testing.assert_close(loss, expected)

    if keep_ratio < 1:  # each view has kept tokens of its own
        assert not torch.equal(mixed.keep, clean.keep)
    # The partner's part carries no gradient; the own part carries its share.
    (grad,) = torch.autograd.grad(mixed.embeddings.sum(), inputs.embeddings)
    share = torch.tensor(np.maximum(shares, 1 - shares), dtype=torch.float32)
    torch.testing.assert_close(grad.amax((1, 2)), share, atol=1e-5, rtol=1e-5)
    grads = torch.autograd.grad(loss, encoded)
    assert all(g.abs().max() > 0 for g in grads)  # both views learn


@pytest.mark.parametrize("keep_ratio", [1.0, 0.25])
def test_emix_mixes_whole_images(keep_ratio: float) -> None:
    """Patch embedding is linear, so mixed embeddings are those of mixed images."""
    torch.manual_seed(0)
    encoder = SamEncoder(TINY)
    images = torch.randn(4, 3, 224, 224)
    embeddings, grid = encoder.embed(images)
    _, mixed = (
        EMix(32, keep_ratio=keep_ratio).plan(Inputs(images, embeddings, grid, seeded(1))).views
    )
    generator = seeded(1)
    Inputs(images, embeddings, grid, generator).clean(keep_ratio)
    seed = int(torch.randint(2**62, (), generator=generator))
    share = np.random.default_rng(seed).beta(1.0, 1.0, 4)
    share = torch.tensor(np.maximum(share, 1 - share), dtype=torch.float32).view(4, 1, 1, 1)
    partner = torch.randperm(4, generator=generator)
    whole, _ = encoder.embed(share * images + (1 - share) * images[partner])
    expected = whole if mixed.keep is None else take(whole, mixed.keep)
    torch.testing.assert_close(mixed.embeddings, expected, atol=1e-5, rtol=1e-5)


def test_emix_learns_nothing_from_which_tokens_are_kept() -> None:
    """An encoder that knows the kept positions alone cannot tell equal images apart."""
    torch.manual_seed(0)
    objective = EMix(32, keep_ratio=0.25)
    nn.init.orthogonal_(objective.project[1].weight)
    positions = torch.randn(196, 32)
    losses = []
    for seed in range(20):
        inputs = make_inputs(32, seed)
        plan = objective.plan(inputs)
        losses.append(plan.loss([positions[view.keep] for view in plan.views]))
    assert torch.stack(losses).mean() > math.log(32)


def test_emix_compares_in_full_precision_under_autocast() -> None:
    torch.manual_seed(0)
    objective = EMix(32, keep_ratio=0.25)
    plan = objective.plan(make_inputs(4))
    encoded = [torch.randn(4, 49, 32).bfloat16() for _ in plan.views]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = plan.loss(encoded)
    torch.testing.assert_close(rounded, plan.loss([e.float() for e in encoded]), atol=0, rtol=0)


@pytest.mark.parametrize(("keep_ratio", "moved"), [(1.0, 0.15), (0.25, 0.15), (0.25, 0.01)])
def test_shed_moves_exactly_the_marked_tokens_among_themselves(
    keep_ratio: float, moved: float
) -> None:
    torch.manual_seed(0)
    objective = ShED(32, keep_ratio=keep_ratio, moved=moved)
    inputs = make_inputs(seed=7)
    plan = objective.plan(inputs)
    clean, (view,) = inputs.clean(keep_ratio).embeddings, plan.views
    n = clean.shape[1]
    count = max(2, math.ceil(moved * n))
    changed = (view.embeddings != clean).any(-1)  # (B, n)
    assert changed.sum(1).tolist() == [count] * 3
    for b in range(3):
        places = changed[b].nonzero().flatten()
        came_from = [
            next(int(q) for q in places if torch.equal(clean[b, q], view.embeddings[b, p]))
            for p in places
        ]
        assert sorted(came_from) == places.tolist()  # a permutation of themselves
        step = dict(zip(places.tolist(), came_from, strict=True))
        here, cycle = places[0].item(), 0
        while cycle == 0 or here != places[0].item():
            here, cycle = step[here], cycle + 1
        assert cycle == count  # one rotation, not several

    encoded = torch.randn(3, n, 32)
    loss = plan.loss([encoded])
    expected = 0.0
    for b in range(3):
        for token in range(n):
            logits = objective.classify(encoded[b, token])
            log_p = logits - logits.exp().sum().log()
            expected -= log_p[int(changed[b, token])] / (3 * n)
    torch.testing.assert_close(loss, expected)


def test_objectives_with_equal_lengths_share_one_encoder_call_and_one_clean_view() -> None:
    torch.manual_seed(0)
    objectives = {
        "mae": MaskedAutoencoding(32, decoder_width=16, decoder_heads=2),
        "emix": EMix(32),
        "shed": ShED(32),
    }
    model = PretrainModel(SamEncoder(TINY), objectives)
    calls: list[tuple[int, ...]] = []
    encode = model.encoder.encode

    def counted(embeddings, grid, keep=None):
        calls.append(tuple(embeddings.shape))
        return encode(embeddings, grid, keep)

    model.encoder.encode = counted
    images = torch.randn(4, 3, 224, 224)
    shared = model(images, seeded(1))
    assert calls == [(12, 49, 32)]  # clean (for MAE and e-Mix), mixed, shuffled

    # The same numbers as with one encoder call per view.
    embeddings, grid = model.encoder.embed(images)
    inputs = Inputs(images, embeddings, grid, seeded(1))
    for name, objective in objectives.items():
        plan = objective.plan(inputs)
        alone = plan.loss([encode(view.embeddings, grid, view.keep) for view in plan.views])
        torch.testing.assert_close(alone, shared[name], atol=1e-5, rtol=1e-5)

    calls.clear()
    model.objectives["emix"].keep_ratio = model.objectives["shed"].keep_ratio = 1.0
    full = model(images, seeded(1))
    assert sorted(calls) == [(4, 49, 32), (12, 196, 32)]
    assert all(loss.isfinite() for loss in full.values())
    total = model.total(full)
    torch.testing.assert_close(total, full["mae"] + full["emix"] + full["shed"])
    total.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


class Everything(Objective):
    """Asks for all tokens in row-major order, and for all of them in another order."""

    def plan(self, inputs: Inputs) -> Plan:
        dense = inputs.clean(1.0)
        keep = torch.arange(196).flip(0).expand(len(inputs.images), -1)
        every = View(take(inputs.embeddings, keep), keep)
        return Plan([dense, every], lambda views: (views[0] - views[1].flip(1)).abs().max())


def test_all_tokens_kept_by_index_do_not_share_a_call_with_the_dense_sequence() -> None:
    torch.manual_seed(0)
    model = PretrainModel(SamEncoder(TINY), {"everything": Everything(1.0, 1.0)})
    assert model(torch.randn(2, 3, 224, 224), seeded(0))["everything"] < 1e-4


@pytest.mark.parametrize("objective", [MaskedAutoencoding, EMix, ShED])
@pytest.mark.parametrize(("keep_ratio", "kept"), [(0.999, 196), (0.002, 0)])
def test_a_ratio_that_keeps_all_or_no_token_is_refused(
    objective: type[Objective], keep_ratio: float, kept: int
) -> None:
    message = f"keep_ratio {keep_ratio} keeps {kept} of the 196 tokens"
    with pytest.raises(ValueError, match=message):
        objective(32, keep_ratio=keep_ratio)
    with pytest.raises(ValueError, match=message):
        balanced_keep(1, GRID, 14, keep_ratio, seeded(0))
    assert balanced_keep(1, GRID, 14, 1.0, seeded(0)).shape == (1, 196)


def test_losses_depend_on_the_generator_alone() -> None:
    torch.manual_seed(0)
    model = PretrainModel(SamEncoder(TINY), {"emix": EMix(32), "shed": ShED(32)})
    images = torch.randn(4, 3, 224, 224)
    first, again, other = (model(images, seeded(s)) for s in (1, 1, 2))
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def _gathered_loss(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    objective = EMix(32, keep_ratio=1.0, gather_negatives=True)
    plan = objective.plan(make_inputs(batch=3, seed=10 + rank))
    encoded = [torch.randn(3, 196, 32, generator=seeded(20 + 2 * rank + i)) for i in range(2)]
    torch.save(plan.loss(encoded).detach(), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_gathered_negatives_equal_one_process_with_both_batches_as_candidates(
    tmp_path: Path,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_gathered_loss, args=(port, str(tmp_path)), nprocs=2)

    torch.manual_seed(0)
    objective = EMix(32, keep_ratio=1.0)
    project = lambda e: F.normalize(objective.project(e.mean(1)), dim=-1)  # noqa: E731
    encoded = [
        [torch.randn(3, 196, 32, generator=seeded(20 + 2 * rank + i)) for i in range(2)]
        for rank in range(2)
    ]
    candidates = torch.cat([project(clean) for clean, _ in encoded])
    for rank in range(2):
        generator = seeded(11 + rank)
        seed = int(torch.randint(2**62, (), generator=generator))
        share = np.random.default_rng(seed).beta(1.0, 1.0, 3)
        share = torch.tensor(np.maximum(share, 1 - share), dtype=torch.float32)
        partner = torch.randperm(3, generator=generator)
        log_p = (project(encoded[rank][1]) @ candidates.T / 0.2).log_softmax(1)
        own_image = log_p[torch.arange(3), 3 * rank + torch.arange(3)]
        partner_image = log_p[torch.arange(3), 3 * rank + partner]
        expected = -(share * own_image + (1 - share) * partner_image).mean()
        measured = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(measured, expected)
