"""What each recipe of stage two states is what its training does."""

from pathlib import Path

import pytest

from data_prep.common.parsing import parse
from finetune.config import TrainConfig
from pretrain.engine.optim import learning_rate

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "finetune").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_its_rate_is_absolute(recipe: Path) -> None:
    options = [f"--config={recipe}", "--data.shards=x", "--output=y", "--optim.batch_size=1"]
    optim = parse(TrainConfig, "train", options)[0].optim
    schedule = optim.schedule(1000)
    assert max(learning_rate(schedule, step) for step in range(schedule.steps)) == optim.lr
    assert 1e-5 <= optim.lr <= 1e-3
