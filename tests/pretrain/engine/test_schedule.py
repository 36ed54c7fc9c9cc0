"""Length of a run in steps or in epochs."""

import pytest

from data_prep.common.errors import UserError
from pretrain.engine.optim import learning_rate
from pretrain.engine.run_options import OptimConfig


@pytest.mark.parametrize(
    ("options", "images", "steps", "warmup"),
    [
        ({"epochs": 3, "warmup_epochs": 1, "batch_size": 16}, 100, 19, 7),
        ({"epochs": 0.5, "warmup_steps": 2, "batch_size": 16}, 100, 4, 2),
        ({"epochs": 2, "warmup_epochs": 0, "batch_size": 50}, 100, 4, 0),
        ({"steps": 30, "warmup_epochs": 2, "batch_size": 64}, 100, 30, 4),
        ({}, 100, 100_000, 2_000),
    ],
)
def test_epochs_become_steps_that_see_at_least_as_many_images(options, images, steps, warmup):
    schedule = OptimConfig(**options).schedule(images)
    assert (schedule.steps, schedule.warmup_steps) == (steps, warmup)


def test_the_rate_is_the_same_whichever_way_the_length_is_given():
    by_epochs = OptimConfig(epochs=4, warmup_epochs=1, batch_size=25).schedule(100)
    by_steps = OptimConfig(steps=16, warmup_steps=4, batch_size=25).schedule(100)
    rates = [learning_rate(by_epochs, step) for step in range(16)]
    assert rates == [learning_rate(by_steps, step) for step in range(16)]
    assert max(rates) == pytest.approx(1.5e-4 * 25 / 256) and rates[-1] > 0


@pytest.mark.parametrize("batch_size", [1, 8, 512])
def test_an_absolute_rate_does_not_depend_on_the_batch(batch_size):
    options = {"steps": 16, "warmup_steps": 4, "batch_size": batch_size}
    schedule = OptimConfig(lr=1e-4, scale_lr=False, **options).schedule(100)
    assert max(learning_rate(schedule, step) for step in range(16)) == 1e-4


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match=r"optim.warmup_epochs: 8 steps are not in 0\.\.4"):
        OptimConfig(epochs=1, warmup_epochs=2, batch_size=25).schedule(100)
    with pytest.raises(UserError, match=r"optim.warmup_steps: 2000 steps are not in 0\.\.4"):
        OptimConfig(epochs=1, batch_size=25).schedule(100)
