"""A disk that is full: nothing that was done is lost, and the run says so."""

import errno
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from data_prep.common.errors import UserError
from data_prep.common.files import write_json
from pretrain.engine import checkpoint as checkpoint_module
from pretrain.engine.checkpoint import Checkpoint, State, checkpoints_of, save_checkpoint
from pretrain.engine.metrics import Metrics, read_metrics

FULL = OSError(errno.ENOSPC, "No space left on device")
OPTIONS = ("--optim.steps=8", "--save_every=2", "--keep=1")


class Full:
    """Each write of a file fails whose path ends so, in some calls of those counted from 0."""

    def __init__(self, end: str, calls: range) -> None:
        self.end, self.calls, self.seen = end, calls, 0

    def __call__(self) -> None:
        save_file, save = checkpoint_module.save_file, torch.save

        def save_weights(tensors, path):
            self.check(path)
            save_file(tensors, path)

        def save_optimizer(values, file):
            self.check(file.name)
            save(values, file)

        def save_json(path, value):
            self.check(path)
            write_json(path, value)

        checkpoint_module.save_file, torch.save = save_weights, save_optimizer
        checkpoint_module.write_json = save_json

    def check(self, path) -> None:
        if str(path).endswith(self.end):
            self.seen += 1
            if self.seen - 1 in self.calls:
                Path(path).write_bytes(b"half")
                raise OSError(*FULL.args)


FILES = ["encoder.safetensors", "optimizer.pt", "state.json", "files.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_save_that_fails_is_a_warning_and_the_next_one_tries_again(
    name, tiny, tmp_path, same_end
):
    expected, run = tmp_path / "expected", tmp_path / "run"
    assert tiny(expected, *OPTIONS) == 0
    assert tiny(run, *OPTIONS, before=Full(name, range(1, 3))) == 0
    same_end(run, expected)
    warnings = [line for line in tiny.printed(run).splitlines() if line.startswith("warning")]
    assert len(warnings) == 2
    for warning, step in zip(warnings, (4, 6), strict=True):
        assert f"step-{step:08d} cannot be saved: No space left on device; make room" in warning
        assert f"step {step + 2} is saved next" in warning


def test_a_run_that_cannot_be_saved_at_its_end_fails_and_can_be_continued(tiny, tmp_path, same_end):
    expected, run = tmp_path / "expected", tmp_path / "run"
    assert tiny(expected, *OPTIONS) == 0
    assert tiny(run, *OPTIONS, before=Full("optimizer.pt", range(1, 9))) == 2
    assert not (run / "DONE").exists()
    last = tiny.printed(run).splitlines()[-1]
    assert last.startswith("error: ") and "step-00000008 cannot be saved" in last
    assert "--resume auto" in last
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]
    assert checkpoints_of(run)[0].fault() == ""
    assert tiny(run, *OPTIONS) == 0
    same_end(run, expected)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard
def test_on_a_disk_that_is_full_the_last_checkpoint_stays(small_disk, capsys):
    (small_disk / "checkpoints").mkdir()
    model = nn.Linear(130, 130)  # 68 kB, and twice that of the optimiser
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 130)).sum().backward()
    optimizer.step()

    def save(step: int) -> Path:
        weights = {"encoder": model.state_dict()}
        return save_checkpoint(small_disk, State(step), weights, {}, optimizer, keep=9)

    metrics = Metrics(small_disk, 0)
    metrics.log(1, {"loss": 1.0})
    save(1)
    (small_disk / "other").write_bytes(b"x" * 700_000)
    with pytest.raises(OSError, match="No space"), (small_disk / "rest").open("wb") as file:
        while True:
            file.write(b"x" * 1024)
            file.flush()
    size = (small_disk / "rest").stat().st_size
    for room in (0, 40_000, 100_000, 180_000):  # fails in weights, in the optimiser, and so on
        with (small_disk / "rest").open("r+b") as file:
            file.truncate(max(size - room, 0))
        with pytest.raises(UserError, match=r"step-00000002 cannot be saved: .*No space left"):
            save(2)
        names = [path.name for path in (small_disk / "checkpoints").iterdir()]
        assert names == ["step-00000001"]
        assert Checkpoint(small_disk / "checkpoints" / "step-00000001").fault() == ""
    with pytest.raises(OSError, match="No space"), (small_disk / "rest").open("ab") as file:
        while True:
            file.write(b"x" * 1024)
            file.flush()
    for step in range(2, 200):
        metrics.log(step, {"loss": 1.0, "rate": 1.0})
    with pytest.raises(OSError, match="No space"):
        metrics.sync()
    for step in range(200, 300):
        metrics.log(step, {"loss": 1.0, "rate": 1.0})
    assert capsys.readouterr().err.count("metrics.jsonl cannot be written (No space left") == 1
    (small_disk / "other").unlink()
    metrics.sync()
    save(2)
    metrics.close()
    assert [row["step"] for row in read_metrics(small_disk)] == list(range(1, 300))


def test_tensorboard_that_cannot_be_written_does_not_end_a_run(tmp_path, capsys, monkeypatch):
    metrics = Metrics(tmp_path, 0)

    def full(*arguments, **options):
        raise OSError(*FULL.args)

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
    for step in (1, 2, 3):
        metrics.log(step, {"loss": 1.0})
    metrics.close()
    assert capsys.readouterr().err.count("tensorboard cannot be written (No space left") == 1
    assert len(read_metrics(tmp_path)) == 3
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.__init__", full)
    Metrics(tmp_path, 3).close()
    assert "tensorboard cannot be written" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_whole_is_named(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(*FULL.args)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space") as error:
        write_json(tmp_path / "DONE", {})
    assert error.value.filename == str(tmp_path / "DONE")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["nan", "shape", "type", "bytes"])
def test_an_optimiser_that_would_spoil_the_weights_is_refused(damage, tmp_path):
    model = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    (tmp_path / "checkpoints").mkdir()
    folder = save_checkpoint(
        tmp_path, State(1), {"encoder": model.state_dict()}, {}, optimizer, keep=1
    )
    path = folder / "optimizer.pt"
    stored = torch.load(path, weights_only=True)
    values = stored["state"][0]
    wanted = values["exp_avg"].clone()
    if damage == "nan":
        values["exp_avg"][1, 1] = float("nan")
    elif damage == "shape":
        values["exp_avg"] = values["exp_avg"][:2]
    elif damage == "type":
        values["exp_avg"] = values["exp_avg"].double()
    torch.save(stored, path)
    if damage == "bytes":
        path.write_bytes(json.dumps({}).encode())
    load = Checkpoint(folder).load_optimizer
    if damage == "type":  # is cast back
        load(optimizer)
        found = optimizer.state[model.weight]["exp_avg"]
        assert found.dtype == torch.float32 and torch.equal(found, wanted)
        return
    said = {"nan": "exp_avg is not finite", "shape": "does not fit", "bytes": "cannot read"}
    with pytest.raises(UserError, match=said[damage]):
        load(optimizer)
