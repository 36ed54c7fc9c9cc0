"""Batch scripts that train: whatever befalls a run on SLURM, it ends as if nothing had."""

import json
import os
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from pretrain.engine.checkpoint import latest_checkpoint

STEPS = 24
RECIPE = {
    "encoder_size": "vit_t",
    "image_size": 32,
    "objectives": {"shed": {"class_path": "ShED", "init_args": {"keep_ratio": 1.0}}},
    "optim": {"steps": STEPS, "batch_size": 4, "warmup_steps": 2, "lr": 0.01},
    "evaluators": {"slow": {"class_path": "slow.Slow", "init_args": {"every": 1}}},
    "data": {"workers": 1},
    "log_every": 1,
    "save_every": 3,
}
SLOW = '''
import time
from pretrain.engine.evaluator import Evaluator, Judgement

class Slow(Evaluator):
    """Two seconds per step while the run folder has a file .slow, so that a test can step in."""

    def evaluate(self, stage, accelerator):
        if (stage.config.output / ".slow").exists():
            time.sleep(2)
        return Judgement()
'''


@pytest.fixture(scope="module")
def recipes(tmp_path_factory) -> Path:
    """A folder with recipes that train in seconds, and one whose loss is not finite."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "slow.py").write_text(SLOW)
    broken = {
        "shed": {"class_path": "ShED", "init_args": {"keep_ratio": 1.0, "weight": float("inf")}}
    }
    for name, changes in {"tiny": {}, "broken": {"objectives": broken}}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(RECIPE | changes))
    return folder


class Cluster:
    """The SLURM, and jobs of this file on it."""

    def __init__(self, slurm, recipes: Path, logs: Path) -> None:
        self.slurm, self.recipes, self.logs = slurm, recipes, logs

    def submit(self, script: str, array: str, *arguments: object, options: tuple[str, ...]) -> str:
        path = os.pathsep.join([str(self.recipes), os.environ.get("PYTHONPATH", "")])
        given = (f"--export=ALL,PYTHONPATH={path}", *options)
        return self.slurm.submit(script, self.logs, array, *arguments, options=given)

    def log(self, job: str, task: int | str) -> str:
        return (self.logs / f"{job}_{task}.log").read_text()

    def running(self, job: str) -> dict[str, str] | None:
        """The task that runs now."""
        tasks = self.slurm.tasks(job).values()
        return next((task for task in tasks if task["JobState"] == "RUNNING"), None)

    def steps(self, run: Path) -> int:
        """Steps that a run has logged."""
        metrics = run / "metrics.jsonl"
        return metrics.read_text().count("\n") if metrics.exists() else 0

    def more_steps(self, run: Path, count: int) -> None:
        """Wait until a run has trained on, past a checkpoint."""
        reached = self.steps(run) + count
        self.slurm.until(lambda: self.steps(run) >= reached)

    def daemon(self, job: str, node: str) -> psutil.Process:
        """The process of SLURM that started training on a node; its child is the training."""
        for process in psutil.process_iter():
            try:
                given = process.environ()
                mine = (given.get("SLURM_JOB_ID"), given.get("SLURMD_NODENAME")) == (job, node)
                parent = process.parent()
                if mine and parent and "SLURM_STEP_ID" in given and parent.name() == "slurmstepd":
                    return parent
            except psutil.Error:
                continue
        raise AssertionError(f"job {job} does not train on {node}")


@pytest.fixture
def cluster(slurm, recipes, tmp_path) -> Cluster:
    return Cluster(slurm, recipes, tmp_path)


def slowed(run: Path) -> Path:
    run.mkdir(parents=True)
    (run / ".slow").touch()
    return run


def resumed_from(run: Path) -> list[str]:
    lines = (run / "resumes.jsonl").read_text().splitlines()
    return [json.loads(line)["from"] for line in lines]


@pytest.fixture(scope="module")
def swept(slurm, recipes, image_shards, tmp_path_factory) -> Path:
    """Three runs at once on one node, of two processes each; one goes on undisturbed to its end."""
    folder = tmp_path_factory.mktemp("sweep")
    cluster = Cluster(slurm, recipes, folder)
    runs = folder / "runs"
    second = slowed(runs / "tiny-seed1")
    options = ("--partition=gpus", "--gpus-per-node=2", "--cpus-per-gpu=1")
    paths = [recipes / f"{name}.yaml" for name in ("tiny", "broken")]
    arguments = (2, *paths, "--data.shards", image_shards, "--output", runs)
    job = cluster.submit("sweep.sbatch", "0-2", *arguments, options=options)

    # One is told to stop as by --signal=B:USR2@180, goes on, and is cancelled by its user.
    cluster.more_steps(second, 2)
    slurm.call("scancel", "--batch", "--signal=USR2", f"{job}_1")
    slurm.until(lambda: slurm.tasks(job)["1"]["Restarts"] == "1")
    slurm.until(lambda: (second / "resumes.jsonl").exists())
    slurm.call("scancel", f"{job}_1")
    tasks = slurm.wait(job)

    states = {number: (task["JobState"], task["Restarts"]) for number, task in tasks.items()}
    assert states == {"0": ("COMPLETED", "0"), "1": ("CANCELLED", "1"), "2": ("FAILED", "0")}
    assert {task["NodeList"] for task in tasks.values()} == {"node2"}
    assert tasks["2"]["ExitCode"] == "2:0"
    failed = cluster.log(job, 2)
    assert "run 3 of 4: " in failed and "training failed with exit status 2" in failed
    assert failed.count("a loss or gradient is not finite") == 2  # each process says so
    assert "exit status 75; requeued to go on from" in cluster.log(job, 1)
    assert "SLURM ends this job" in cluster.log(job, 1)
    for run, seed in ((runs / "tiny-seed0", 0), (second, 1), (runs / "broken-seed0", 0)):
        assert yaml.safe_load((run / "config.yaml").read_text())["seed"] == seed
    assert not (runs / "broken-seed0" / "checkpoints" / "step-00000003").exists()
    assert "2 processes on cpu" in cluster.log(job, 0)
    return runs


def test_a_sweep_trains_recipes_and_seeds_side_by_side(swept, read_losses):
    first = read_losses(swept / "tiny-seed0")
    assert [row["step"] for row in first] == list(range(1, STEPS + 1))
    assert (swept / "tiny-seed0" / "DONE").exists()
    assert not (swept / "tiny-seed1" / "DONE").exists()
    assert read_losses(swept / "tiny-seed1")[0]["shed"] != first[0]["shed"]


def test_a_chain_on_two_nodes_survives_all_that_befalls_it(
    slurm, cluster, swept, image_shards, tmp_path, read_losses
):
    run = slowed(tmp_path / "run")
    arguments = ("--config", cluster.recipes / "tiny.yaml", "--data.shards", image_shards)
    # One core per process, as in the sweep: more threads add up in another order.
    # The signal is due at once; SLURM looks every 30 seconds.
    options = ("--nodes=2", "--cpus-per-task=1", "--time=1", "--signal=USR2@60")
    job = cluster.submit("pretrain.sbatch", "1-3%1", *arguments, "--output", run, options=options)
    slurm.until(lambda: cluster.running(job) is not None)
    slurm.call("scontrol", "update", f"jobid={job}_[2-3]", "timelimit=60")

    # 1. The time limit.
    slurm.until(lambda: slurm.tasks(job)["1"]["JobState"] == "COMPLETED")
    assert "saved; the next task of the array goes on" in cluster.log(job, 1)
    assert "2 processes on cpu" in cluster.log(job, 1)
    assert cluster.steps(run) < STEPS

    # 2. A job that is more urgent.
    slurm.until(lambda: cluster.running(job) is not None)
    cluster.more_steps(run, 2)
    urgent = ("sbatch", "--parsable", "--partition=urgent", "--exclusive", "--nodelist=node1")
    slurm.call(*urgent, f"--output={tmp_path}/urgent.log", "--wrap=true")
    slurm.until(lambda: slurm.tasks(job)["2"]["JobState"] == "COMPLETED")
    assert "CANCELLED" in cluster.log(job, 2)
    assert "saved; the next task of the array goes on" in cluster.log(job, 2)

    # 3. A process that is killed; the last task starts itself again.
    slurm.until(lambda: cluster.running(job) is not None)
    cluster.more_steps(run, 4)
    last = slurm.tasks(job)["3"]["JobId"]
    for process in cluster.daemon(last, "node1").children():
        process.kill()
    slurm.until(lambda: slurm.tasks(job)["3"]["Restarts"] == "1")
    assert "requeued to go on from" in cluster.log(job, 3)

    # 4. A node that is lost.
    slurm.until(lambda: cluster.running(job) is not None)
    cluster.more_steps(run, 2)
    daemon = cluster.daemon(last, "node1")
    lost = [daemon, *daemon.children(recursive=True)]
    for process in lost:
        process.kill()
    slurm.nodes["node1"].kill()
    slurm.call("scontrol", "update", "nodename=node1", "state=down", "reason=lost")
    slurm.until(lambda: slurm.tasks(job)["3"]["Restarts"] == "2")
    slurm.start_node("node1")
    # refused where the node is back already by itself (ReturnToService)
    slurm.call("scontrol", "update", "nodename=node1", "state=resume", check=False)

    (run / ".slow").unlink()
    tasks = slurm.wait(job)
    assert {task["JobState"] for task in tasks.values()} == {"COMPLETED"}
    assert {task["NodeList"] for task in tasks.values()} == {"node[0-1]"}
    saved = resumed_from(run)
    assert len(saved) == 4 and saved == sorted(saved)
    assert (run / "DONE").exists() and not (run / "INTERRUPTED").exists()
    expected = swept / "tiny-seed0"
    assert read_losses(run) == read_losses(expected)
    for name in ("encoder", "objectives"):
        found, wanted = (latest_checkpoint(each).weights(name) for each in (run, expected))
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)

    # The same line again has nothing to do.
    before = (run / "metrics.jsonl").stat().st_mtime_ns
    again = cluster.submit("pretrain.sbatch", "1-2%1", *arguments, "--output", run, options=options)
    assert {task["JobState"] for task in slurm.wait(again).values()} == {"COMPLETED"}
    assert all("is done already" in cluster.log(again, task) for task in (1, 2))
    assert (run / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("script", "array", "arguments", "message"),
    [
        ("pretrain.sbatch", "1-2", ("--output", "x"), "with --array=1-N%1"),
        ("pretrain.sbatch", "1", ("--config", "x.yaml"), "takes the options of pretrain/train.py"),
        ("pretrain.sbatch", "1-2%1", ("--output", "x", "--optim.lrr", "1"), "mean --optim.lr?"),
        ("sweep.sbatch", "0-2", ("2", "a.yaml", "--output", "x"), "are --array=0-1"),
        ("sweep.sbatch", "0", ("a.yaml", "--output", "x"), "takes a number of seeds"),
        (
            "sweep.sbatch",
            "0",
            ("2", "a/x.yaml", "b/x.yaml", "--output=x"),
            "two recipes are called",
        ),
        ("sweep.sbatch", "0", ("2", "a.yaml", "--seed=3"), "--seed is given to each run"),
        ("finetune.sbatch", "0", ("--output", "x"), "one run is no array"),
        ("finetune.sbatch", "0-4", ("1,all", "2", "a.yaml", "--output", "x"), "are --array=0-3"),
        ("finetune.sbatch", "0", ("few", "2", "a.yaml"), "few is no list of numbers of cases"),
        (
            "finetune.sbatch",
            "0",
            ("1", "2", "a.yaml", "--data.cases=3", "--output", "x"),
            "--data.cases is given to each run",
        ),
    ],
)
def test_what_is_refused_fails_once_and_is_not_requeued(script, array, arguments, message, cluster):
    job = cluster.submit(script, array, *arguments, options=())
    for number, task in cluster.slurm.wait(job).items():
        assert (task["JobState"], task["Restarts"], task["ExitCode"]) == ("FAILED", "0", "2:0")
        assert cluster.log(job, number).count(message) == 1
