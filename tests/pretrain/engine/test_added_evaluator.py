"""An evaluator from outside the package, as CONTRIBUTING.md adds it, in both stages."""

import json

import pytest
from accelerate.state import AcceleratorState

from data_prep.common.cli import run_command
from finetune.train import COMMAND as STAGE_TWO
from pretrain.train import COMMAND as STAGE_ONE

TINY = ("--optim.steps=5", "--optim.batch_size=2", "--optim.warmup_steps=1", "--data.workers=0")


def judged(run) -> dict[int, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["norms/length"] for row in rows if "norms/length" in row}


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_it_judges_every_so_many_steps_and_at_the_end(
    stage, contributed, image_shards, labelled_shards, read_losses
):
    shards = image_shards if stage == "pretrain" else labelled_shards
    command = STAGE_ONE if stage == "pretrain" else STAGE_TWO
    options = [f"--config=configs/{stage}/quickstart.yaml", *TINY, f"--data.shards={shards}"]
    options += ["--model.image_size=64"] if stage == "finetune" else []
    plain, judging = contributed / "plain", contributed / "judging"
    run_command(stage, command, [*options, f"--output={plain}"])
    more = ["--evaluators.norms", "norms.Norms", "--evaluators.norms.every=2"]
    run_command(stage, command, [*options, f"--output={judging}", *more])
    AcceleratorState._reset_state(reset_partial_state=True)
    found = judged(judging)
    assert list(found) == [2, 4, 5] and len(set(found.values())) == 3
    losses = [row for row in read_losses(judging) if "norms/length" not in row]
    assert losses == read_losses(plain)  # judging leaves training as it is


def test_it_is_called_in_all_processes(contributed, image_shards, launch, monkeypatch):
    """A second process that did not take part would leave the first one waiting."""
    (contributed / "meeting.py").write_text(
        "import torch\n"
        "from pretrain.engine.evaluator import Evaluator, Judgement\n"
        "class Meeting(Evaluator):\n"
        "    def evaluate(self, stage, accelerator):\n"
        "        ranks = accelerator.gather(torch.tensor([accelerator.process_index]))\n"
        "        return Judgement({'ranks': float(len(set(ranks.tolist())))})\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(contributed))
    options = ["--config=configs/pretrain/quickstart.yaml", *TINY, "--optim.steps=2"]
    options += [f"--data.shards={image_shards}", f"--output={contributed / 'run'}"]
    options += ["--evaluators.meeting=meeting.Meeting", "--evaluators.meeting.every=1"]
    done = launch("pretrain/train.py", *options, processes=2)
    assert done.returncode == 0, done.stderr
    lines = (contributed / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["meeting/ranks"] for row in rows if "meeting/ranks" in row] == [2.0, 2.0]
