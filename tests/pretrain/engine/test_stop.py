"""Training whose launcher is gone stops as if it had been asked to."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from pretrain.engine.looks import Looks

ROOT = Path(__file__).parents[3]


def end_of(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that still run after some time; they are ended too, so that none is left."""
    _, there = psutil.wait_procs(processes, timeout=seconds)
    left = []
    for process in there:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:  # which nobody has asked for its status
                left.append(process)
                process.kill()
    return left


@pytest.mark.parametrize(("processes", "number"), [(1, signal.SIGTERM), (2, signal.SIGUSR2)])
def test_a_launcher_that_ends_alone_leaves_no_orphan(
    processes, number, image_shards, tmp_path, launch
) -> None:
    run = tmp_path / "run"
    options = ["--config=configs/pretrain/quickstart.yaml", "--optim.steps=2000", "--log_every=1"]
    options += ["--optim.batch_size=2", f"--data.shards={image_shards}", f"--output={run}"]
    command = launch.command("pretrain/train.py", *options, processes=processes)
    with (tmp_path / "log").open("wb") as log:
        launcher = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists():
            assert launcher.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        training = psutil.Process(launcher.pid).children(recursive=True)
        assert len(training) >= processes
        launcher.send_signal(number)
        launcher.wait()
    assert not end_of(training, 40), (tmp_path / "log").read_text()
    assert (run / "INTERRUPTED").read_text().startswith("after step ")
    assert list((run / "checkpoints").glob("step-*"))
    assert "Traceback" not in (tmp_path / "log").read_text()


SCRIPT = """
import os, signal, time
from pretrain.engine.stop import StopRequest, hold_signals
hold_signals()
for number in (signal.SIGTERM, signal.SIGUSR2):
    os.kill(os.getpid(), number)
time.sleep(0.1)
print("alive")
print(StopRequest().asked)
"""


def test_a_signal_during_set_up_waits_until_it_can_be_answered() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["alive", "True"], done.stderr


PARENTS = """
import os
from pretrain.engine import stop
os.environ["ACCELERATE_MIXED_PRECISION"] = "no"  # as Accelerator does
print(os.getppid() == stop.LAUNCHER)
os.getppid = lambda: 1
print(stop.StopRequest().asked)
"""


@pytest.mark.parametrize(
    ("variable", "parent", "launched"),
    [
        (None, "bash", False),
        ("TORCHELASTIC_RUN_ID", "torchrun", True),
        ("SLURM_STEP_ID", "slurmstepd: [7.", True),
        ("SLURM_STEP_ID", "bash", False),  # a shell that srun has opened
    ],
)
def test_only_what_a_launcher_started_watches_its_parent(variable, parent, launched) -> None:
    """A run started by hand goes on after its shell has ended."""
    from pretrain.engine.stop import LAUNCHED

    others = {k: v for k, v in os.environ.items() if k not in (*LAUNCHED, "SLURM_STEP_ID")}
    environment = others | ({variable: "0"} if variable else {})
    naming = f"open('/proc/self/comm', 'w').write({parent!r})"
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    command = [sys.executable, "-c", f"{naming}; {start}", PARENTS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(launched)] * 2, done.stderr


def test_slow_steps_are_looked_at_more_often(monkeypatch) -> None:
    """All processes agree on the next look, whatever their own clocks say."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    others: list[float] = []

    def reduce(told: torch.Tensor, how: str) -> torch.Tensor:
        return torch.stack([told, torch.tensor(others)]).mean(0)

    accelerator = SimpleNamespace(device=torch.device("cpu"), reduce=reduce)
    looks = Looks(accelerator, None, 100)
    assert not looks.due(100) and looks.due(101)
    clock.now, others[:] = 90.0, [0.0, 30.0]  # the first compiles
    assert looks.agree(101, stop=False) is False and looks.due(102)
    clock.now, others[:] = 94.0, [0.0, 6.0]  # 5 s per step: four steps
    assert not looks.agree(102, stop=False)
    assert [looks.due(step) for step in (105, 106)] == [False, True]
    clock.now, others[:] = 94.4, [1.0, 0.1]
    assert looks.agree(106, stop=False) is True  # the other was asked to
    assert [looks.due(step) for step in (113, 114)] == [False, True]
    third = Looks(accelerator, 3, 0)
    assert third.due(3) and not third.due(2)
