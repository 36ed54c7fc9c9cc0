"""Diffusion over masks: its noise, its loss, what is drawn, and how the image is seen."""

import copy

import numpy as np
import pytest
import torch
from monai.networks.schedulers import DDPMScheduler
from torch.nn import functional as F

from data_prep.common.errors import UserError
from finetune.baselines.denoisers import DENOISERS, FFParser, normalised
from finetune.baselines.diffusion import Diffusion
from finetune.model.losses import NoMaskLoss, mask_dice

SIZE, TARGETS = 16, ("disc", "cup")
TINY = {
    "steps": 30,
    "sampling_steps": 5,
    "samples": 2,
    "channels": (8, 8, 16),
    "attention": (False, False, True),
    "blocks": 1,
    "image_blocks": 1,
}


def tiny(condition: str = "concatenate", size: int = SIZE, **options) -> Diffusion:
    torch.manual_seed(0)
    network = Diffusion(size, TARGETS, condition, **{**TINY, **options})
    for weight in network.parameters():  # MONAI starts the last one of each block at zero
        if not weight.any() and weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.05)
    return network


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def masks(count: int) -> torch.Tensor:
    return torch.rand(count, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(2)) > 0.6


class Oracle(torch.nn.Module):
    """Knows the truth, and so the noise."""

    def __init__(self, network: Diffusion, truth: torch.Tensor) -> None:
        super().__init__()
        self.kept, self.truth = network.kept, 2 * truth.float() - 1

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def forward(self, noisy, times, features) -> torch.Tensor:
        kept = self.kept[times][:, None, None, None]
        return (noisy - kept.sqrt() * self.truth) / (1 - kept).sqrt()


@pytest.mark.parametrize("steps", [30, 1000])
def test_noise_is_added_as_step_by_step(steps) -> None:
    """The variances of Ho et al. in a thousand steps, larger ones in fewer."""
    network = tiny(steps=steps)
    variances = np.linspace(0.1 / steps, 20 / steps, steps)
    share, spread = 1.0, 0.0  # of the mask, and the variance of the noise, after each step
    for time, variance in enumerate(variances):
        share, spread = share * np.sqrt(1 - variance), (1 - variance) * spread + variance
        if time in (0, 7, steps - 1):
            mask, noise = torch.randn(2, 1, 2, 4, 4)
            noisy = network.add_noise(mask, noise, torch.tensor([time]))
            assert torch.allclose(noisy, share * mask + np.sqrt(spread) * noise, atol=1e-4)
    assert network.kept[-1] < 0.01


def test_the_loss_is_the_error_of_the_noise_on_padding_too() -> None:
    network, truth = tiny(), masks(3)
    valid = torch.ones(3, SIZE, SIZE, dtype=torch.bool)
    valid[1, :, 9:] = False
    maps = network.training_maps(images(3), (), truth, np.random.default_rng(5))
    draw = torch.Generator().manual_seed(int(np.random.default_rng(5).integers(2**63)))
    times = torch.randint(30, (3,), generator=draw)
    noise = torch.randn(truth.shape, generator=draw)
    errors = []
    for b in range(3):
        kept = float(network.kept[times[b]])
        mask = torch.where(truth[b], 1.0, -1.0)
        noisy = np.sqrt(kept) * mask + np.sqrt(1 - kept) * noise[b]
        found = network.denoiser(noisy[None], times[b : b + 1], images(3)[b : b + 1])[0]
        errors += (found - noise[b]).square().flatten().tolist()
        guess = (noisy - np.sqrt(1 - kept) * found) / np.sqrt(kept)
        assert torch.equal(maps[b, :2] > 0, guess > 0)
    loss = network.auxiliary_loss(maps, truth, valid)
    assert loss.item() == pytest.approx(np.mean(errors), rel=1e-4)
    again = network.training_maps(images(3), (), truth, np.random.default_rng(5))
    other = network.training_maps(images(3), (), truth, np.random.default_rng(6))
    assert torch.equal(again, maps) and not torch.allclose(other, maps, atol=1e-2)
    assert float(NoMaskLoss()(maps, truth)[0]) == 0


@pytest.mark.parametrize(("sampling_steps", "eta"), [(30, 1.0), (7, 0.0), (1, 0.5)])
def test_one_that_knows_the_noise_draws_the_truth(sampling_steps, eta) -> None:
    network, truth = tiny(sampling_steps=sampling_steps, eta=eta), masks(3)
    network.denoiser = Oracle(network, truth)
    logits = network(images(3))
    assert torch.equal(logits > 0, truth) and logits.abs().min() > 5


def test_a_step_between_neighbours_is_that_of_ddpm() -> None:
    """MONAI's, the clipping of the guess included."""
    network = tiny(eta=1.0)
    reference = DDPMScheduler(30, "linear_beta", beta_start=0.1 / 30, beta_end=20 / 30)
    now, predicted = torch.randn(2, 2, 2, 4, 4)
    for time in (29, 12, 1, 0):
        noise = torch.randn(now.shape, generator=torch.Generator().manual_seed(3))
        found = network.step_back(now, predicted, time, time - 1 if time else None, noise)
        generator = torch.Generator().manual_seed(3)
        expected, _ = reference.step(predicted, time, now, generator=generator)
        assert torch.allclose(found, expected, atol=1e-5)


def test_steps_that_are_skipped_lead_where_the_next_begins() -> None:
    network, truth = tiny(sampling_steps=4), masks(1)
    stepped = []
    step_back = network.step_back

    def watched(now, predicted, time, before, noise):
        stepped.append((time, before))
        return step_back(now, predicted, time, before, noise)

    network.step_back = watched
    network.denoiser = Oracle(network, truth)
    network(images(1))
    assert stepped[:4] == [(29, 19), (19, 10), (10, 0), (0, None)] and len(stepped) == 8


def test_what_is_drawn_is_the_mean_and_the_same_each_time() -> None:
    """Whatever lies beside an image, and whatever was drawn before."""
    network, given = tiny().eval(), images(3)
    state = torch.get_rng_state()
    logits = network(given)
    assert torch.equal(torch.get_rng_state(), state) and not logits.requires_grad
    assert torch.equal(network(given), logits)
    assert torch.allclose(network(given[2:]), logits[2:], atol=1e-3)
    draw = torch.Generator().manual_seed(0)
    parts = [network.sample(given, draw) for _ in range(2)]
    assert not torch.allclose(*parts, atol=0.1)
    probability = (sum(parts) / 2 + 1) / 2
    assert torch.allclose(logits.sigmoid(), probability.clamp(1e-4, 1 - 1e-4), atol=1e-5)
    network.seed = 1
    assert not torch.allclose(network(given), logits, atol=0.1)


@pytest.mark.parametrize("condition", list(DENOISERS))
def test_each_way_sees_image_mask_and_time_and_trains_all_weights(condition) -> None:
    """In bfloat16, too."""
    network = tiny(condition)
    with torch.autocast("cpu", torch.bfloat16):
        maps = network.training_maps(images(2), (), masks(2), np.random.default_rng(0))
        loss = network.auxiliary_loss(maps, masks(2), torch.ones(2, SIZE, SIZE, dtype=torch.bool))
        logits = network(images(2))
    assert maps.dtype == logits.dtype == torch.float32
    assert maps.shape == (2, 4, SIZE, SIZE) and logits.shape == (2, 2, SIZE, SIZE)
    assert maps.isfinite().all() and logits.isfinite().all()
    loss.backward()
    missing = [name for name, each in network.named_parameters() if each.grad is None]
    assert not missing
    moved = [bool(each.grad.abs().sum() > 0) for each in network.parameters()]
    assert sum(moved) > 0.9 * len(moved)
    noisy, times = torch.randn(1, 2, SIZE, SIZE), torch.tensor([3])

    def noise(image, noisy, times):
        return network.denoiser(noisy, times, network.denoiser.features(image)).detach()

    before = noise(images(1), noisy, times)
    for changed in (
        (images(1) + torch.eye(SIZE), noisy, times),
        (images(1), noisy + torch.eye(SIZE), times),
        (images(1), noisy, times + 20),
    ):
        assert not torch.allclose(noise(*changed), before, atol=1e-4)
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}


def test_the_ff_parser_weighs_frequencies() -> None:
    parser, x = FFParser(3, 8), torch.randn(2, 3, 8, 8)
    assert torch.allclose(parser(x), x, atol=1e-5)
    parser.weight.data[1] = 0
    parser.weight.data[1, 0, 0, 0] = 1  # the mean alone passes
    mean = x[:, 1].mean((1, 2), keepdim=True).expand(-1, 8, 8)
    assert torch.allclose(parser(x)[:, 1], mean, atol=1e-5)
    assert torch.allclose(parser(x)[:, 2], x[:, 2], atol=1e-5)


def test_medsegdiff_without_its_image_encoder_is_the_u_net() -> None:
    """And one whose image encoder is at work sees the mask through the middle level's product."""
    network = tiny("dynamic")
    denoiser = network.denoiser
    assert list(denoiser.parsers) == ["1"]
    noisy, times = torch.randn(2, 2, SIZE, SIZE), torch.tensor([3, 20])
    features = []
    denoiser.image_down[2].register_forward_pre_hook(
        lambda module, given, named: features.append(named["hidden_states"]), with_kwargs=True
    )
    image, mask = [], []
    denoiser.image_down[1].register_forward_hook(lambda *given: image.append(given[-1][0]))
    denoiser.unet.down_blocks[1].register_forward_hook(lambda *given: mask.append(given[-1][0]))
    denoiser(noisy, times, images(2))
    expected = image[0] * F.layer_norm(image[0], image[0].shape[1:]) * normalised(mask[0])
    assert torch.allclose(features[0], expected, atol=1e-5)
    silent = copy.deepcopy(denoiser)
    for parameter in (*silent.image_in.parameters(), *silent.image_down.parameters()):
        parameter.data.zero_()
    found = silent(noisy, times, images(2))
    assert torch.allclose(found, silent.unet(noisy, times), atol=1e-5)


@pytest.mark.parametrize("rows", [SIZE, SIZE - 4])
def test_a_toy_problem_is_learned(rows: int) -> None:
    """A bright disc is found by what was trained on other discs, above padding, too."""
    grid = torch.arange(SIZE)
    draw = torch.Generator().manual_seed(0)

    def discs(count):
        across = torch.randint(4, SIZE - 4, (count, 1, 1), generator=draw)
        down = torch.randint(4, rows - 4, (count, 1, 1), generator=draw)
        inside = (grid[:, None] - down) ** 2 + (grid - across) ** 2 < 16
        pixels = 2 * inside[:, None] - 1 + 0.1 * torch.randn(count, 3, SIZE, SIZE, generator=draw)
        pixels[:, :, rows:] = 0
        return pixels, inside[:, None]

    torch.manual_seed(0)
    options = {"steps": 30, "sampling_steps": 10, "samples": 3, "blocks": 1}
    narrow = {"channels": (16, 16), "attention": (False, False)}
    network = Diffusion(SIZE, ("disc",), **options, **narrow)
    optimizer = torch.optim.Adam(network.parameters(), betas=(0.9, 0.99))
    rng = np.random.default_rng(0)
    valid = torch.ones(16, SIZE, SIZE, dtype=torch.bool)
    valid[:, rows:] = False
    for step in range(60):
        optimizer.param_groups[0]["lr"] = 0.005 * (1 - step / 60)
        given, truth = discs(16)
        maps = network.training_maps(given, (), truth, rng)
        optimizer.zero_grad()
        network.auxiliary_loss(maps, truth, valid).backward()
        optimizer.step()
    given, truth = discs(8)
    found = network(given)
    assert mask_dice(found[:, :, :rows], truth[:, :, :rows]).mean() > 0.9


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"condition": "add"}, "condition is 'add'; there are sum, concatenate, dynamic"),
        ({"steps": 10}, "steps is 10; it must be 21 or more"),
        ({"sampling_steps": 31}, "sampling_steps is 31; there are 30 steps"),
        ({"samples": 0}, "must be positive"),
        ({"channels": (), "attention": ()}, "must be positive"),
        ({"eta": 2.0}, "eta is 2.0"),
        ({"heads": 3}, r"multiples of heads 3"),
        ({"attention": (True,)}, r"attention \[True\] as many"),
        ({"size": 18}, "model.image_size to be a multiple of 4, not 18"),
    ],
)
def test_options_that_cannot_be_are_refused(options, named) -> None:
    with pytest.raises(UserError, match=named):
        tiny(**options)
