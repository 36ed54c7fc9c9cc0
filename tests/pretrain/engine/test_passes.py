"""Passes per step chosen to fit the memory, and one line where they do not."""

import json
import re
import shutil
import types
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from data_prep.common.cli import run_command
from data_prep.common.errors import UserError
from data_prep.common.parsing import parse
from pretrain.config import EstimateOptions
from pretrain.engine import passes
from pretrain.engine.checkpoint import State, latest_checkpoint
from pretrain.engine.memory import TensorMemory, pass_memory
from pretrain.engine.run_options import OptimConfig
from pretrain.estimate import measure
from pretrain.train import COMMAND

pytestmark = pytest.mark.usefixtures("shallow")

AUTO = (
    "--config=configs/pretrain/quickstart.yaml",
    "--optim.steps=2",
    "--optim.warmup_steps=1",
    "--optim.batch_size=12",
    "--optim.accumulate=auto",
    "--data.workers=0",
    "--save_every=1",
)
OUT_OF_MEMORY = '''"""An objective that finds no memory for more than a number of images."""

import torch

from pretrain.objectives import MaskedAutoencoding



class Large(MaskedAutoencoding):
    """See above."""

    def __init__(self, width: int, weight: float = 1.0, most: int = 5, allocator: bool = False):
        super().__init__(width, weight)
        self.most, self.allocator = most, allocator

    def plan(self, inputs):
        if len(inputs.images) > self.most:
            text = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
            raise RuntimeError(text) if self.allocator else torch.OutOfMemoryError("CUDA ...")
        return super().plan(inputs)
'''


class LinearStage:
    """As much of a stage as trials need: samples are numbers."""

    def __init__(self, most: int) -> None:
        self.model, self.most, self.tried = nn.Linear(3, 1), most, []
        self.dataset = types.SimpleNamespace(order=lambda epoch: range(100))
        self.dataset = type(
            "Data", (), {"order": lambda _, e: range(100), "__getitem__": lambda _, i: i[0]}
        )()

    def collate(self, samples):
        return samples

    def losses(self, model, batch, seed):
        self.tried.append(len(batch))
        assert set(batch) <= set(range(passes.DISTINCT))
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return model(torch.ones(len(batch), 3)).sum(), {}

    def savings(self):
        return ["--recompute_blocks true"]


@pytest.fixture(autouse=True)
def fast_bf16(monkeypatch) -> None:
    """The advice is that of a processor on which bf16 saves time, too."""
    monkeypatch.setattr("pretrain.engine.cpu.has_fast_bf16", lambda: True)


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def options_of(**optim) -> types.SimpleNamespace:
    return types.SimpleNamespace(optim=OptimConfig(**optim), precision="no")


@pytest.mark.parametrize(
    ("most", "passes_found", "tried"), [(12, 1, [12]), (4, 4, [12, 6, 3]), (1, 12, [12, 6, 3, 1])]
)
def test_by_trying_the_images_of_a_pass_are_halved_until_it_runs(
    most, passes_found, tried, accelerator
):
    stage = LinearStage(most)
    found = passes._by_trying(accelerator, options_of(), stage, 12, passes.divisors(12))
    assert (found, stage.tried) == (passes_found, tried)
    assert all(p.grad is None for p in stage.model.parameters())


@pytest.mark.parametrize(
    ("fast", "advice"), [(True, "--precision bf16 or --recompute"), (False, "with --recompute")]
)
def test_where_not_even_one_image_runs_the_line_says_what_to_change(
    fast, advice, accelerator, monkeypatch
):
    monkeypatch.setattr("pretrain.engine.cpu.has_fast_bf16", lambda: fast)
    with pytest.raises(UserError, match=rf"one image.*{advice}_blocks true"):
        passes._by_trying(accelerator, options_of(), LinearStage(0), 2, [1, 2])


def test_another_error_in_a_trial_is_not_taken_for_a_lack_of_memory(accelerator):
    stage = LinearStage(1)
    stage.losses = lambda *_: (_ for _ in ()).throw(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        passes._by_trying(accelerator, options_of(), stage, 2, [1, 2])


def run(*options: str) -> None:
    try:
        run_command("pretrain/train.py", COMMAND, [*AUTO, *options])
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def undo_last_step(folder: Path) -> Path:
    """A finished run has its last step to do again; gives the checkpoint that it has."""
    shutil.rmtree(latest_checkpoint(folder).folder)
    (folder / "DONE").unlink()
    return latest_checkpoint(folder).folder


def test_a_run_keeps_its_number_and_what_it_contrasts(
    image_shards, tmp_path, monkeypatch, capfd
) -> None:
    folder = tmp_path / "run"
    where = (f"--data.shards={image_shards}", f"--output={folder}")
    monkeypatch.setattr(passes, "free_memory", lambda: 10**12)
    run(*where)
    assert "optim.accumulate auto: 1 pass per step, of 12 images" in capfd.readouterr().out
    assert latest_checkpoint(folder).state().passes == 1

    # Memory decides: here so much that a pass of 3 images fits, and one of 4 does not...
    model = measure(parse(EstimateOptions, "estimate", [*AUTO, "--images=1"])[0])
    fixed = 16 * model.trained + model.once
    enough = (fixed + 3.5 * model.per_image) / passes.USABLE
    monkeypatch.setattr(passes, "free_memory", lambda: enough)
    small = tmp_path / "small"
    run(where[0], f"--output={small}")
    assert latest_checkpoint(small).state().passes == 4
    monkeypatch.setattr(passes, "free_memory", lambda: 10**6)
    with pytest.raises(SystemExit):
        run(where[0], f"--output={tmp_path / 'none'}")
    error = capfd.readouterr().err.splitlines()[-1]
    assert re.match(r"error: one image takes 0\.\d GB, and 0\.0 GB are free .*--precision", error)
    assert [path.name for path in (tmp_path / "none").iterdir()] == [".lock"]

    # ... but not where a run goes on: on the same machine its number is kept,
    monkeypatch.setattr(passes, "free_memory", lambda: enough)
    undo_last_step(folder)
    run(*where, "--resume=auto")
    assert latest_checkpoint(folder).state().passes == 1
    # and on another one e-Mix contrasts as many images as before.
    monkeypatch.setattr(passes, "free_memory", lambda: 10**12)
    state = undo_last_step(small) / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"machine": "8 x another"}))
    state.with_name("files.json").unlink()
    run(where[0], f"--output={small}", "--resume=auto")
    assert "auto: 4 passes per step" in capfd.readouterr().out


@pytest.mark.parametrize("allocator", ["false", "true"])
def test_out_of_memory_is_one_line_that_says_what_to_change(
    allocator, image_shards, tmp_path, monkeypatch, capfd
) -> None:
    (tmp_path / "large.py").write_text(OUT_OF_MEMORY)
    monkeypatch.syspath_prepend(tmp_path)
    where = (f"--data.shards={image_shards}", f"--output={tmp_path / 'run'}")
    own = ("--objectives.own=large.Large", f"--objectives.own.allocator={allocator}")
    alone = tuple(f"--objectives.{name}.weight=0" for name in ("mae", "emix", "shed"))
    with pytest.raises(SystemExit) as stopped:
        run(*where, *own, *alone, "--optim.accumulate=2")
    assert stopped.value.code == 2
    (line,) = (row for row in capfd.readouterr().err.splitlines() if row.startswith("error"))
    assert line == (
        "error: out of memory with 6 images in a pass; make more passes with --optim.accumulate 4; "
        "take less memory with --precision bf16 or --recompute_blocks true"
    )
    with pytest.raises(SystemExit):
        run(f"--output={tmp_path / 'other'}", where[0], *own, "--optim.accumulate=2")
    (line,) = (row for row in capfd.readouterr().err.splitlines() if row.startswith("error"))
    assert "--optim.accumulate 4 in a new run (results depend on how many images share" in line
    if allocator == "false":
        run(*where, *own, *alone, "--resume=auto", "--optim.accumulate=4")
        assert (tmp_path / "run" / "DONE").exists()


def test_memory_of_a_pass_is_what_its_tensors_take():
    layers = nn.Sequential(nn.Linear(64, 128, bias=False), nn.ReLU(), nn.Linear(128, 1, bias=False))
    parameters = list(layers.parameters())
    images = torch.ones(1000, 64)
    found = pass_memory(parameters, lambda: layers(images).sum())
    hidden, out, gradient = 1000 * 128 * 4, 1000 * 4, (64 * 128 + 128) * 4
    # Hidden before and after ReLU; backward, the gradients of both at once.
    assert 3 * hidden <= found <= 4 * hidden + 3 * out + gradient + 100
    assert all(p.grad is None for p in parameters)
    with TensorMemory() as memory:
        kept = torch.ones(100)
        torch.ones(200)
        kept.view(10, 10)
    assert (memory.live, memory.peak) == (400, 1200)


def test_options_given_by_number_are_used_as_they_are(accelerator):
    assert passes.choose_passes(accelerator, options_of(accumulate=4), None, State()) == 4
