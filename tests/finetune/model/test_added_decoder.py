"""A decoder from outside the package, as CONTRIBUTING.md adds it: trained, evaluated and used."""

import csv

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from data_prep.common.cli import run_command, run_program
from finetune.__main__ import COMMANDS
from finetune.inference.loading import load_segmenter
from finetune.train import COMMAND

TINY = ("--optim.steps=2", "--optim.batch_size=2", "--optim.warmup_steps=1", "--data.workers=0")
RECIPE = ("--config=configs/finetune/quickstart.yaml", *TINY, "--model.image_size=64")
HEAD = ("--model.decoder=pixel_head.PixelHead", "--prompts=TargetsOnly", "--loss.iou=0")


@pytest.fixture
def run(contributed, labelled_shards):
    folder = contributed / "run"
    options = [*RECIPE, *HEAD, "--model.decoder_adapter=null", f"--data.shards={labelled_shards}"]
    run_command("finetune/train.py", COMMAND, [*options, f"--output={folder}"])
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder


def test_a_head_is_trained_evaluated_and_used(run, contributed, labelled_shards, capsys):
    segmenter = load_segmenter(run, torch.device("cpu"))
    assert segmenter.targets == ("disc", "square")
    assert segmenter.head.weight.shape == (2, 256, 1, 1)
    assert {part.name: part.state for part in segmenter.describe()}["head"] == "trained"
    results = contributed / "results"
    arguments = [f"--run={run}", f"--data.shards={labelled_shards}", f"--output={results}"]
    run_program("finetune", COMMANDS, ["evaluate", *arguments, "--protocols=TargetOnly"])
    rows = list(csv.DictReader((results / "results.csv").read_text().splitlines()))
    assert len(rows) == 4 * 2 and {row["protocol"] for row in rows} == {"no prompt"}
    with pytest.raises(SystemExit):
        run_program(
            "finetune", COMMANDS, ["evaluate", *arguments[:2], f"--output={contributed}/no"]
        )
    assert "protocols: Clicks gives prompts, and decoder PixelHead" in capsys.readouterr().err
    assert not (contributed / "no").exists()
    image = contributed / "photo.png"
    Image.fromarray(np.full((50, 70), 90, np.uint8)).save(image)
    masks = []
    for target in ("disc", "square"):
        mask = contributed / f"{target}.png"
        options = [f"--run={run}", f"--input={image}", f"--output={mask}", f"--target={target}"]
        run_program("finetune", COMMANDS, ["predict", *options])
        masks.append(np.array(Image.open(mask)))
    assert masks[0].shape == (50, 70)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clicks=5,5,1"], "this model's decoder takes a target (--target NAME), and no other"),
        (["--target=dsic"], "was not trained on target 'dsic'; did you mean disc?"),
        (["--target=disc", "--box=1,1,5,5"], "target: is for models without prompts"),
    ],
)
def test_other_prompts_are_refused(run, contributed, capsys, options, message):
    image = contributed / "photo.png"
    Image.fromarray(np.full((50, 70), 90, np.uint8)).save(image)
    given = [f"--run={run}", f"--input={image}", f"--output={contributed / 'm.png'}", *options]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run_program("finetune", COMMANDS, ["predict", *given])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (HEAD, "model.decoder_adapter: PixelHead takes no adapter"),
        (HEAD[1:], "prompts: TargetsOnly gives no prompts, and decoder SamDecoder needs some"),
        (
            (HEAD[0], "--loss.iou=0", "--model.decoder_adapter=null"),
            "prompts: ClicksAndBoxes gives prompts, and decoder PixelHead takes none; choose Targ",
        ),
        (
            (*HEAD[:2], "--model.decoder_adapter=null"),
            "this decoder predicts no IoU; set loss.iou to 0",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_refused(
    contributed, labelled_shards, capsys, options, message
):
    given = [*RECIPE, *options, f"--data.shards={labelled_shards}"]
    with pytest.raises(SystemExit):
        run_command("finetune/train.py", COMMAND, [*given, f"--output={contributed / 'run'}"])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert f"error: {message}" in capsys.readouterr().err
