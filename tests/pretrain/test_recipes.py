"""Recipes of stage one: each starts as its header says, and the header's figures are right.

`tests/test_documents.py` starts some of them through `accelerate launch`; here the same options are
given to the same script in this process.
"""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from data_prep.common.cli import run_command
from data_prep.common.parsing import parse
from helpers.recipes import ROOT, header_of, options_of_command, recipes_of
from pretrain import estimate
from pretrain.config import EstimateOptions, PretrainConfig
from pretrain.encoder.sam import build_encoder
from pretrain.train import COMMAND

pytestmark = pytest.mark.usefixtures("shallow")

RECIPES = recipes_of("configs/pretrain")
FOR_CPU = ("configs/pretrain/laptop.yaml", "configs/pretrain/quickstart.yaml")
"""Their memory and time were measured, and are not estimated for GPUs."""
SMALL = (
    *("--optim.epochs=null", "--optim.warmup_epochs=null", "--optim.steps=1"),
    *("--optim.batch_size=2", "--optim.accumulate=1", "--optim.warmup_steps=1"),
    *("--data.workers=0", "--log_every=1", "--data.min_scale=0.5"),
)
"""What makes a recipe run in a second."""


@pytest.fixture(scope="module")
def workspace(image_shards, tmp_path_factory, shallow) -> Path:
    """A folder with the recipes, shard sets and checkpoints that the headers name.

    The checkpoints are small: the size of an encoder is that of its checkpoint.
    """
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "pretrain").symlink_to(ROOT / "pretrain")
    for name in ("scans", "radimagenet", "eyepacs", "isic"):
        (folder / "shards").mkdir(exist_ok=True)
        (folder / "shards" / name).symlink_to(image_shards)
    torch.manual_seed(0)
    weights = build_encoder("vit_t").state_dict()
    sam = {f"image_encoder.{name}": tensor for name, tensor in weights.items()}
    for name in ("sam_vit_b_01ec64.pth", "sam_vit_l_0b3195.pth", "sam_vit_h_4b8939.pth"):
        torch.save(sam, folder / name)
    return folder


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_starts_as_its_header_says(recipe, workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    options = options_of_command(recipe)
    output = Path(options[options.index("--output") + 1])
    shutil.rmtree(output, ignore_errors=True)
    started = "\nstart_from:" in (ROOT / recipe).read_text()  # its size is that of its checkpoint
    size = [] if started else ["--encoder_size=vit_t"]
    run_command("pretrain/train.py", COMMAND, [*options, *SMALL, *size])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert "1 steps of 2, 1 process on cpu" in capsys.readouterr().out
    assert (output / "DONE").is_file()
    shutil.rmtree(output)


@pytest.mark.parametrize("recipe", FOR_CPU)
def test_what_was_measured_on_a_cpu_is_stated(recipe):
    header = header_of(recipe)
    assert re.search(r"Memory: [\d.]+ [MG]B", header) and re.search(r"Time: .*\d", header)


@pytest.fixture(scope="module")
def measured() -> Iterator[None]:
    """Recipes whose models and passes are the same are measured once."""
    kept: dict[str, Any] = {}

    def measure_once(options: EstimateOptions) -> Any:
        names = ("encoder_size", "image_size", "precision", "recompute_blocks")
        objectives = {name: chosen.to_dict() for name, chosen in options.objectives.items()}
        shape = repr([objectives, *(getattr(options, name) for name in names)])
        if shape not in kept:
            kept[shape] = measure(options)
        return kept[shape]

    measure = estimate.measure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "measure", measure_once)
        yield


def estimated(*words: str) -> estimate.Estimate:
    return estimate.estimate_recipe(parse(EstimateOptions, "estimate", list(words))[0])


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in FOR_CPU])
def test_the_figures_in_a_header_are_those_of_estimate(recipe, measured, monkeypatch):
    monkeypatch.chdir(ROOT)
    header = " ".join(header_of(recipe).replace("\n# ", " ").split())
    (command,) = re.findall(r"`python -m pretrain estimate ([^`]+)`", header)
    words = shlex.split(command)
    assert words[:2] == ["--config", recipe]
    found = estimated(*words)
    for line in found.lines():
        assert line in header, f"{recipe}: {line}"
    assert "no GPU was measured" in header


def test_recipes_are_complete():
    names = {name.removeprefix("configs/pretrain/").removesuffix(".yaml") for name in RECIPES}
    sizes = {f"vit_{size}{kind}" for size in "sblh" for kind in ("", "_sam")} - {"vit_s_sam"}
    ablations = {f"ablation/{n}" for n in ("mae", "mae_emix", "mae_shed", "all", "all_full_tokens")}
    machines = {"gpu_8gb", "gpu_24gb", "gpu_80gb", "three_objectives", "vit_b_448"}
    assert names == {*sizes, *ablations, *machines, "quickstart", "laptop", "full_tokens"}


@pytest.mark.parametrize("gigabytes", [8, 24, 80])
def test_a_recipe_for_a_gpu_fits_it_with_room(gigabytes, measured, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = estimated(f"--config=configs/pretrain/gpu_{gigabytes}gb.yaml", "--images=1000")
    assert found.passes > 1 and found.memory + 1e9 < 0.95 * gigabytes * 1e9


def test_ablations_differ_in_their_objectives_alone(monkeypatch):
    monkeypatch.chdir(ROOT)
    others = []
    for recipe in (name for name in RECIPES if "/ablation/" in name):
        words = [f"--config={recipe}", "--data.shards=x", "--output=y"]
        config = parse(PretrainConfig, "train", words)[0]
        assert config.objectives["mae"].init_args["weight"] == 1
        config.objectives = {}
        others.append(config)
    assert len(others) == 5 and all(config == others[0] for config in others)


def test_full_tokens_is_the_papers_form(monkeypatch):
    monkeypatch.chdir(ROOT)
    words = ["--config=configs/pretrain/full_tokens.yaml", "--data.shards=x", "--output=y"]
    config = parse(PretrainConfig, "train", words)[0]
    mae, emix, shed = (config.objectives[name].init_args for name in ("mae", "emix", "shed"))
    shape = [mae[f"decoder_{name}"] for name in ("width", "depth", "heads")]
    assert (shape, mae["keep_ratio"], mae["weight"]) == ([512, 8, 16], 0.25, 1)
    assert [(each["keep_ratio"], each["weight"]) for each in (emix, shed)] == [(1, 1)] * 2
