"""Few-shot curves as an array: a task that is told to stop is requeued and makes its run."""

import json
import os
from pathlib import Path

NETWORK = """
import pathlib, time
from torch import nn
from finetune.model.network import Network

class Slow(Network):
    def __init__(self, image_size, targets):
        super().__init__(image_size, targets)
        self.layer = nn.Conv2d(3, len(targets), 3, padding=1)

    def forward(self, images, stacks=()):
        time.sleep(2 if pathlib.Path({waiting!r}).exists() else 0)
        return self.layer(images)
"""
ARM = {
    **{"model.network": "slow_network.Slow", "model.image_size": 32, "loss.iou": 0},
    **{"prompts": "TargetsOnly", "data.without_targets": None, "data.workers": 0},
    **{"optim.steps": 9, "optim.batch_size": 2, "optim.warmup_steps": 0, "save_every": 1},
}


def test_a_task_that_is_told_to_stop_is_requeued_and_makes_its_run(
    slurm, labelled_shards, tmp_path
):
    waiting, study = tmp_path / "waiting", tmp_path / "study"
    waiting.touch()
    (tmp_path / "slow_network.py").write_text(NETWORK.format(waiting=str(waiting)))
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    here = ("--partition=gpus", "--gpus-per-node=1", "--cpus-per-gpu=1")
    given = ("--shards", labelled_shards, "--output", study, "--cases", 2, "--draws", 1)
    words = ("--arms.slow", json.dumps(ARM), *given, "--evaluation.data.cases", 1)
    options = (f"--export=ALL,PYTHONPATH={paths}", *here)
    job = slurm.submit("few_shot.sbatch", tmp_path, "0-1", *words, options=options)

    run = study / "runs/slow/cases2-draw0"
    slurm.until(lambda: (run / "checkpoints/step-00000001").exists())
    slurm.call("scancel", "--signal=USR2", f"{job}_0")  # as ahead of the time limit
    slurm.until(lambda: slurm.tasks(job)["0"]["Restarts"] == "1")
    waiting.unlink()
    tasks = slurm.wait(job)
    log = Path(tmp_path / f"{job}_0.log").read_text()
    assert {task["JobState"] for task in tasks.values()} == {"COMPLETED"}, log
    assert "exit status 75; requeued to go on\n" in log
    assert (run / "DONE").exists() and len((run / "resumes.jsonl").read_text().splitlines()) == 1
    assert (
        "runs: 1, 0 of them of this task; done before: 0"
        in Path(tmp_path / f"{job}_1.log").read_text()
    )
    (record,) = study.glob("evaluations/*/*/run.json")
    assert len(json.loads(record.read_text())["groups"]) == 2
    assert "no prompt" in (study / "few_shot.md").read_text()
    assert (study / "few_shot.png").exists()
