"""Stage two on SLURM: one run, or an array over recipes, numbers of cases and seeds."""

import os
import shutil

import yaml

OPTIONS = (
    *("--optim.steps=2", "--optim.batch_size=2", "--optim.warmup_steps=0", "--data.workers=0"),
    *("--model.image_size=64", "--save_every=1"),
)


def test_an_array_trains_recipes_numbers_of_cases_and_seeds(slurm, labelled_shards, tmp_path):
    """The first and the last of its tasks: seeds change fastest, and recipes slowest."""
    here = ("--partition=gpus", "--gpus-per-node=1", "--cpus-per-gpu=1")
    options = (f"--export=ALL,PYTHONPATH={os.environ.get('PYTHONPATH', '')}", *here)
    given = ("--data.shards", labelled_shards, "--output", tmp_path / "runs", *OPTIONS)
    other = shutil.copy("configs/finetune/quickstart.yaml", tmp_path / "other.yaml")
    words = ("1,all", 2, "configs/finetune/quickstart.yaml", other, *given)
    job = slurm.submit("finetune.sbatch", tmp_path, "0,7", *words, options=options)
    states = {task["JobState"] for task in slurm.wait(job).values()}
    logs = "\n".join(path.read_text() for path in sorted(tmp_path.glob("*.log")))
    assert states == {"COMPLETED"}, logs
    for name, cases, seed in (("quickstart", 1, 0), ("other", None, 1)):
        run = tmp_path / "runs" / f"{name}-cases{cases or 'all'}-seed{seed}"
        assert (run / "DONE").exists(), logs
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert (config["data"]["cases"], config["seed"]) == (cases, seed)
