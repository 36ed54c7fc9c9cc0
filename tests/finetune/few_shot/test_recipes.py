"""Recipes of few-shot curves start as their headers say; the array's example is a study."""

import re
import shlex
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from data_prep.common.parsing import parse
from finetune.few_shot.arms import find_arms
from finetune.few_shot.config import FewShotConfig
from finetune.few_shot.study import runs_of
from helpers.recipes import ROOT, recipes_of
from pretrain.encoder.sam import build_encoder

SMALL = (
    *("--cases=1", "--draws=1", "--threads=1", "--training.data.workers=0"),
    *(
        "--training.optim.steps=2",
        "--training.optim.batch_size=2",
        "--training.optim.warmup_steps=1",
    ),
    *("--training.model.image_size=64", "--arms.unet.model.image_size=64"),
    "--arms.unet.model.network.features=[4, 8, 8, 8, 8]",
)
"""What makes a run of a study take seconds."""


def options_of(path: str, script: str) -> list[str]:
    """The options of the command in the header of a file."""
    lines = (ROOT / path).read_text().splitlines()
    shown = " ".join(line[4:] for line in lines if line.startswith("#   "))
    return shlex.split(shown.replace("\\ ", " ").partition(f"{script} ")[2])


@pytest.mark.parametrize("recipe", recipes_of("configs/few_shot"))
def test_a_recipe_is_a_study_of_arms_that_differ_in_what_they_start_from(recipe):
    words = options_of(recipe, "finetune few_shot")
    assert words[:2] == ["--config", recipe]
    config, _ = parse(FewShotConfig, "few_shot", words)
    arms = find_arms(config)
    assert len(runs_of(config, arms)) == len(arms) * 5 * 3
    assert len({(arm.training.optim.steps, arm.training.optim.batch_size) for arm in arms}) == 1
    assert len({str(arm.evaluation.protocols) for arm in arms}) == 1
    assert len({str(arm.training.data) for arm in arms}) == 1
    new, *pretrained = [arm.training for arm in arms if arm.training.model.network is None]
    assert new.encoder is None and {each.model.trained[0] for each in pretrained} == {
        "image_encoder.*"
    }
    for each in pretrained:
        assert replace(each, encoder=None, model=new.model) == new


@pytest.mark.parametrize("recipe", recipes_of("configs/few_shot"))
@pytest.mark.usefixtures("shallow", "in_process")
def test_a_recipe_starts_as_its_header_says(
    recipe, labelled_shards, few_shot, tmp_path, monkeypatch
):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "hippocampus").symlink_to(labelled_shards)
    for seed, run in enumerate(("laptop", "laptop-mae")):
        torch.manual_seed(seed)
        step = tmp_path / "runs" / run / "checkpoints" / "step-00000001"
        step.mkdir(parents=True)
        save_file(build_encoder("vit_t").state_dict(), step / "encoder.safetensors")
    monkeypatch.chdir(tmp_path)
    few_shot([*options_of(recipe, "finetune few_shot"), *SMALL])
    results = tmp_path / "results/few_shot_laptop"
    scored = {path.parts[-3] for path in results.glob("evaluations/*/*/run.json")}
    assert scored == {"nothing", "mae", "three", "unet"}
    assert (results / "few_shot.png").is_file()


def test_arms_that_the_header_of_a_recipe_names_can_be_added():
    text = (ROOT / "configs/few_shot/laptop.yaml").read_text()
    added = [shlex.split(each) for each in re.findall(r"`(--arms[^`]*{[^`]*)`", text)]
    words = options_of("configs/few_shot/laptop.yaml", "finetune few_shot")
    config, _ = parse(FewShotConfig, "few_shot", sum(added, words))
    arms = {arm.name: arm.training for arm in find_arms(config)}
    assert list(arms)[-2:] == ["prompted", "frozen"]
    model = replace(arms["frozen"].model, trained=["image_encoder.*"])
    frozen = replace(arms["frozen"], evaluators=arms["three"].evaluators)
    assert arms["three"] == replace(frozen, model=model)


def test_the_array_has_a_task_for_each_run_as_its_header_says():
    words = options_of("slurm/few_shot.sbatch", "slurm/few_shot.sbatch")
    config, _ = parse(FewShotConfig, "few_shot", words)
    runs = runs_of(config, find_arms(config))
    last = re.search(r"--array=0-(\d+)", (ROOT / "slurm/few_shot.sbatch").read_text())
    assert last is not None and len(runs) == int(last[1]) + 1 == 12
    assert {run.arm.training.encoder for run in runs} == {"runs/quickstart", None}
