"""Which checkpoint a run goes on from: a whole one, and the same on all nodes."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from data_prep.common.errors import UserError
from pretrain.engine import saving
from pretrain.engine.checkpoint import State, checkpoints_of, latest_checkpoint, save_checkpoint
from pretrain.engine.resume import agree_on_checkpoint


def saved(run: Path, steps=(2, 4)) -> Path:
    """A run folder with checkpoints of a small model after some steps."""
    (run / "checkpoints").mkdir(parents=True)
    model = nn.Linear(300, 300)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    for step in steps:
        weights = {"encoder": model.state_dict()}
        save_checkpoint(run, State(step), weights, {"encoder": {"name": "x"}}, optimizer, keep=9)
    return run


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("damage", [truncated, flipped, emptied, Path.unlink])
@pytest.mark.parametrize("name", ["encoder.safetensors", "optimizer.pt", "state.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    name, damage, tmp_path, accelerator, capsys
):
    run = saved(tmp_path / "run")
    damage(latest_checkpoint(run).folder / name)
    assert agree_on_checkpoint(run, accelerator).folder.name == "step-00000002"
    warning = capsys.readouterr().err
    assert "step-00000004 is damaged: " in warning and "going on from step-00000002" in warning
    assert warning.count("\n") == 1


@pytest.mark.parametrize("name", ["encoder.safetensors", "optimizer.pt", "state.json"])
def test_so_does_one_of_an_earlier_version_which_kept_no_sums(name, tmp_path, accelerator):
    run = saved(tmp_path / "run")
    for checkpoint in checkpoints_of(run):
        (checkpoint.folder / "files.json").unlink()
    assert agree_on_checkpoint(run, accelerator).folder.name == "step-00000004"
    truncated(latest_checkpoint(run).folder / name)
    assert agree_on_checkpoint(run, accelerator).folder.name == "step-00000002"


def test_a_run_without_a_whole_checkpoint_is_refused(tmp_path, accelerator):
    run = saved(tmp_path / "run")
    for checkpoint in checkpoints_of(run):
        flipped(checkpoint.folder / "encoder.safetensors")
    with pytest.raises(UserError, match=r"step-00000004 is damaged: .* no other is whole"):
        agree_on_checkpoint(run, accelerator)
    shutil.rmtree(run / "checkpoints")
    assert agree_on_checkpoint(run, accelerator) is None


def look_before_saving() -> None:
    """Print the checkpoints that there are at each save."""
    save = saving.save_checkpoint

    def look(run, *arguments):
        print("sees", *(checkpoint.folder.name for checkpoint in checkpoints_of(run)))
        save(run, *arguments)

    saving.save_checkpoint = look


def test_a_damaged_newer_checkpoint_is_gone_before_the_run_goes_on(tiny, tmp_path, same_end):
    """Else the next save would keep it as the newest, and with keep 1 remove the only whole one."""
    expected, run = tmp_path / "expected", tmp_path / "run"
    options = ("--optim.steps=5", "--save_every=2", "--keep=2")
    assert tiny(expected, *options) == 0
    shutil.copytree(expected, run)
    (run / "DONE").unlink()
    flipped(run / "checkpoints" / "step-00000005" / "encoder.safetensors")
    assert tiny(run, *options, "--keep=1", before=look_before_saving) == 0, tiny.printed(run)
    assert "sees step-00000004\n" in tiny.printed(run)
    shutil.rmtree(expected / "checkpoints" / "step-00000004")
    same_end(run, expected)


def test_a_checkpoint_that_vanishes_after_it_was_chosen_is_one_line(tmp_path, accelerator):
    run = saved(tmp_path / "run")
    checkpoint = agree_on_checkpoint(run, accelerator)
    shutil.rmtree(checkpoint.folder)
    with pytest.raises(UserError, match="cannot read how far the run was"):
        checkpoint.state()
    with pytest.raises(UserError, match="cannot read weights"):
        checkpoint.weights("encoder")
    with pytest.raises(UserError, match=r"cannot read .*optimizer\.pt: "):
        checkpoint.load_optimizer(torch.optim.AdamW([torch.zeros(1)]))
    assert agree_on_checkpoint(run, accelerator).folder.name == "step-00000002"


def _agree(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    accelerator = Accelerator(cpu=True)
    told = []
    for case in ("same", "stale", "local", "none", "damaged", "all damaged"):
        run = Path(folder) / case
        run = run / str(rank) if (run / str(rank)).exists() else run
        try:
            found = agree_on_checkpoint(run, accelerator)
            told.append(found.folder.name if found else "none")
        except UserError as error:
            told.append(str(error).partition(": ")[2])
    (Path(folder) / f"{rank}.json").write_text(json.dumps(told))
    accelerator.end_training()


def test_all_processes_go_on_from_one_checkpoint_or_none_does(tmp_path):
    """Each sees the folder of its case; where it has folders 0 and 1, its own, as on two nodes."""
    saved(tmp_path / "same")
    saved(tmp_path / "stale" / "0")
    saved(tmp_path / "stale" / "1", steps=(2,))
    saved(tmp_path / "local" / "1")
    (tmp_path / "local" / "0").mkdir()
    (tmp_path / "none").mkdir()
    damaged = saved(tmp_path / "damaged")
    flipped(latest_checkpoint(damaged).folder / "encoder.safetensors")
    for checkpoint in checkpoints_of(saved(tmp_path / "all damaged")):
        truncated(checkpoint.folder / "encoder.safetensors")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_agree, args=(port, str(tmp_path)), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first[0] == second[0] == "step-00000004"
    host = socket.gethostname()
    for found in (first, second):
        assert f"process 1 on {host} does not see" in found[1] and "(step-00000004)" in found[1]
        assert f"process 1 on {host} does not see" in found[2] and "(no checkpoint)" in found[2]
        assert found[3] == "none" and found[4] == "step-00000002"
        assert "no other is whole" in found[5]
