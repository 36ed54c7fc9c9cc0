"""Processes that srun starts find each other, and see one run folder, or end with one line."""

import json
import os
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator
from torch import distributed

from data_prep.common.errors import UserError
from pretrain.engine.launch import Step, allotted_cores, join_step, processes_here
from pretrain.engine.shared import check_shared, note, read_note


def task(job: int, rank: int) -> dict[str, str]:
    """What srun sets for a task of a step of two on one node."""
    return {
        "SLURM_JOB_ID": f"{job}",
        "SLURM_STEP_ID": "0",
        "SLURM_RESTART_COUNT": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_PROCID": f"{rank}",
        "SLURM_LOCALID": f"{rank}",
        "SLURM_NODEID": "0",
        "SLURMD_NODENAME": "not-a-name.invalid",
        "SLURM_CPUS_PER_TASK": "3",
    }


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, (1, 2, 1, 2)),
        (
            {
                "SLURM_STEP_NUM_TASKS": "9",
                "SLURM_STEP_TASKS_PER_NODE": "4(x2),1",
                "SLURM_NODEID": "2",
                "SLURM_PROCID": "8",
                "SLURM_LOCALID": "0",
            },
            (8, 9, 0, 1),
        ),
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),  # a batch script has no such variable at all
        ({"RANK": "0"}, None),  # torchrun or accelerate between
    ],
)
def test_a_task_knows_its_place(change, expected):
    step = Step.find(task(7, 1) | change)
    found = step and (step.rank, step.world, step.local_rank, step.local_world)
    assert found == expected
    assert step is None or step.name == "step-7-0-2"


def test_without_srun_nothing_is_joined(tmp_path, monkeypatch):
    for name in task(0, 0):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    join_step(tmp_path / "run")
    assert not (tmp_path / "run").exists() and not distributed.is_initialized()
    assert processes_here(8) == 8 and allotted_cores() is None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # torchrun on two nodes
    assert processes_here(8) == 4


def error_of(function, *arguments) -> str:
    try:
        function(*arguments)
    except UserError as error:
        return str(error)
    return "none"


def _task(process: int, folder: Path) -> None:
    """One of two tasks of two jobs, which run at the same time on this machine."""
    job, rank = divmod(process, 2)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    os.environ |= task(job, rank)
    told: dict[str, object] = {}
    told["disks of their own"] = error_of(join_step, folder / f"{process}" / "run", 3.0)
    run = folder / "not yet" / f"there {job}"
    if rank == 0:
        time.sleep(0.5)  # the other finds an old note first
    join_step(run, 60.0)
    accelerator = Accelerator(cpu=True)
    value = torch.tensor(10.0**process)
    told["sum"] = float(accelerator.reduce(value, "sum"))
    told["left"] = sorted(path.name for path in run.glob(".*"))
    told["here"] = processes_here(9), allotted_cores()
    told["shared"] = error_of(check_shared, folder / f"one {job}" / "run", accelerator)
    told["local"] = error_of(check_shared, folder / f"{process}" / "run", accelerator, 1.0)
    locked = folder / "a file" / "run"
    told["cannot be made"] = error_of(check_shared, locked, accelerator, 1.0)
    (folder / f"{process}.json").write_text(json.dumps(told))
    accelerator.end_training()


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "a file").touch()
    stale = folder / "not yet" / "there 0"
    stale.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = {"hosts": ["localhost"], "port": free.getsockname()[1]}
    (stale / ".step-0-0-2").write_text(json.dumps(dead))
    mp.spawn(_task, args=(folder,), nprocs=4)
    return folder, [json.loads((folder / f"{process}.json").read_text()) for process in range(4)]


def test_two_jobs_on_one_node_do_not_meet(told):
    _, tasks = told
    assert [each["sum"] for each in tasks] == [11.0, 11.0, 1100.0, 1100.0]
    assert all(each["here"] == [2, 3] for each in tasks)


def test_a_folder_that_others_do_not_see_is_refused_in_one_line(told):
    folder, tasks = told
    host = socket.gethostname()
    for process, each in enumerate(tasks):
        run, rank = folder / f"{process}" / "run", process % 2
        end = "a run folder must be on a disk that all nodes share"
        joining = each["disks of their own"]
        assert joining.startswith(f"output {run}: ") and joining.endswith(end)
        who = f"process 1 on {host} did not find" if rank else "of 2 processes, 1 and 0 more did"
        assert who in joining
        local = each["local"]
        assert f"process 1 on {host} does not see what process 0 writes" in local
        assert local.endswith(end)
        assert each["shared"] == "none"
        assert "cannot be written (Not a directory)" in each["cannot be made"]


def test_nothing_is_left_in_the_folder_or_of_it(told):
    folder, tasks = told
    assert all(each["left"] == [] for each in tasks)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["not yet"]
    assert [path.name for path in (folder / "not yet").iterdir()] == ["there 0"]


def test_a_note_leaves_what_was_there(tmp_path):
    (tmp_path / "kept").mkdir()
    with note(tmp_path / "kept" / "made", "name", "text"):
        assert read_note(tmp_path / "kept" / "made", "name") == "text"
        assert read_note(tmp_path / "other", "name") is None
    assert list(tmp_path.rglob("*")) == [tmp_path / "kept"]
