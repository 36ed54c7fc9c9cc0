"""A loss that is not finite: weights stay, the record is named, and the run goes on without it."""

import json
import signal
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from data_prep.__main__ import main as data_prep
from data_prep.common.cli import run_command
from data_prep.loader.batches import GlobalBatches
from data_prep.loader.dataset import ShardDataset
from pretrain.engine import loop
from pretrain.engine.checkpoint import latest_checkpoint
from pretrain.train import COMMAND

pytestmark = pytest.mark.usefixtures("shallow")

OBJECTIVES = '''"""Objectives of these tests."""

import os
import signal

import torch
from torch import nn

from pretrain.objectives import Objective, Plan



class Contrast(Objective):
    """Not finite for an image that is all of one value, as a division by its deviation is."""

    def __init__(self, width: int, weight: float = 1.0, keep_ratio: float = 0.25):
        super().__init__(weight, keep_ratio)
        self.predict = nn.Linear(width, 1)

    def plan(self, inputs):
        deviation = inputs.images[:, 0].flatten(1).std(1)  # (B,)

        def loss(encoded):
            found = self.predict(encoded[0].float().mean(1))[:, 0] / deviation
            return (found - 1).square().mean()

        return Plan([inputs.clean(self.keep_ratio)], loss)


class Signalled(Contrast):
    """Asks the run to stop in its second step."""

    calls = 0

    def plan(self, inputs):
        self.calls += 1
        if self.calls == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().plan(inputs)
'''
BATCH, STEPS = 4, 6
TINY = (
    "--config=configs/pretrain/quickstart.yaml",
    f"--optim.steps={STEPS}",
    "--optim.warmup_steps=1",
    f"--optim.batch_size={BATCH}",
    "--data.workers=0",
    "--image_size=224",
    *(f"--objectives.{name}.weight=0" for name in ("mae", "emix", "shed")),
)
ONE_LOOK = ("--check_every=4", "--log_every=100", "--save_every=100")


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory) -> tuple[ShardDataset, str]:
    """13 images, of which one is of one value, and the key of that one."""
    folder = tmp_path_factory.mktemp("poisoned")
    rng = np.random.default_rng(0)
    (folder / "files").mkdir()
    for number in range(13):
        pixels = rng.integers(0, 256, (32, 32), dtype=np.uint8) if number else np.full((32, 32), 9)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "files" / f"{number}.png")
    options = ["--layout=folder", f"--input={folder / 'files'}", "--shard_records=5"]
    data_prep(["shard", *options, f"--output={folder / 'shards'}"])
    dataset = ShardDataset(folder / "shards")
    (key,) = (r.key for r in map(dataset.record, range(13)) if r.image.std() == 0)
    return dataset, key


@pytest.fixture
def train(poisoned, tmp_path, monkeypatch):
    """Runs stage one on those images, with an order in which step 2 is the bad one."""
    (tmp_path / "own_objectives.py").write_text(OBJECTIVES)
    monkeypatch.syspath_prepend(tmp_path)
    dataset, key = poisoned

    def drawn_in(seed: int) -> int:
        keys = [dataset.record(int(i)).key for i in _ordered(dataset, seed)]
        return keys.index(key) // BATCH + 1

    seed = next(seed for seed in range(100) if drawn_in(seed) == 2)

    def run(name: str, *options: str, objective: str = "Contrast") -> Path:
        own = f"--objectives.own=own_objectives.{objective}"
        where = (f"--data.shards={dataset.root}", f"--output={tmp_path / name}", f"--seed={seed}")
        try:
            run_command("pretrain/train.py", COMMAND, [*TINY, own, *where, *options])
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
        return tmp_path / name

    return run


def _ordered(dataset: ShardDataset, seed: int) -> np.ndarray:
    return ShardDataset(dataset.root, seed=seed).order(0)


def refused(train, capfd, *options: str, **more: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        train(*options, **more)
    assert stopped.value.code == 2
    (line,) = (row for row in capfd.readouterr().err.splitlines() if row.startswith("error:"))
    return line


def test_the_record_is_named_and_the_run_goes_on_without_it(
    train, poisoned, tmp_path, capfd, read_losses
):
    key = poisoned[1]
    line = refused(train, capfd, "run", "--save_every=1")
    assert f"step 2: a loss or gradient is not finite, which comes of {key};" in line
    found = json.loads((tmp_path / "run" / "nonfinite-0.json").read_text())
    assert found["step"] == 2 and found["records"] == [key] and len(found["keys"]) == BATCH
    # As the message says it. The other way it names leaves the record in.
    assert f"--resume auto --skip_keys '[\"{key}\"]'" in line
    assert "--resume auto --optim.lr 0.004" in line
    again = refused(train, capfd, "run", "--resume=auto", "--optim.lr=0.004", "--save_every=1")
    assert f"which comes of {key}" in again

    skip = f'--skip_keys=["{key}"]'
    run = train("run", "--resume=auto", skip, "--save_every=1")
    (_, resumed) = (json.loads(row) for row in (run / "resumes.jsonl").read_text().splitlines())
    assert resumed["from"] == "step-00000001" and resumed["changed"]["skip_keys"] == [[], [key]]
    without = train("without", skip, "--save_every=1")
    assert read_losses(run) == read_losses(without)
    found, wanted = (latest_checkpoint(each).weights("encoder") for each in (run, without))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_look_several_steps_later_finds_the_weights_as_they_were(
    train, tmp_path, capfd, monkeypatch
):
    refused(train, capfd, "each", "--save_every=1")
    before = latest_checkpoint(tmp_path / "each")
    assert before.state().step == 1
    kept = {}

    def keep(accelerator, options, stage, dataset, state, step):
        kept.update(step=step, at=state.step, weights=stage.weights()["encoder"])
        return error(accelerator, options, stage, dataset, state, step)

    error = loop.nonfinite_error
    monkeypatch.setattr(loop, "nonfinite_error", keep)
    line = refused(train, capfd, "later", *ONE_LOOK)
    assert "step 2: a loss or gradient is not finite" in line
    assert (kept["step"], kept["at"]) == (2, 4)
    saved = before.weights("encoder")
    assert all(torch.equal(kept["weights"][name], tensor) for name, tensor in saved.items())
    assert [
        json.loads((tmp_path / name / "nonfinite-0.json").read_text()) for name in ("each",)
    ] == [json.loads((tmp_path / name / "nonfinite-0.json").read_text()) for name in ("later",)]


def test_looking_less_often_changes_nothing(train, poisoned, read_losses):
    skip = f'--skip_keys=["{poisoned[1]}"]'
    often = train("often", skip, "--log_every=5", "--save_every=100")
    seldom = train("seldom", skip, "--log_every=5", "--save_every=100", "--check_every=4")
    assert read_losses(often) == read_losses(seldom)
    found, wanted = (latest_checkpoint(run).weights("encoder") for run in (often, seldom))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_signal_is_answered_at_the_next_look(train, poisoned, tmp_path):
    skip = f'--skip_keys=["{poisoned[1]}"]'
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        train("run", skip, *ONE_LOOK, objective="Signalled")
    signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 75
    assert (tmp_path / "run" / "INTERRUPTED").read_text() == "after step 4\n"
    assert latest_checkpoint(tmp_path / "run").state().step == 4


def test_where_every_record_fails_none_is_blamed(train, tmp_path, capfd):
    options = ("--objectives.emix.weight=1", "--objectives.emix.temperature=0")
    line = refused(train, capfd, "run", *options)
    assert f"{BATCH} of {BATCH} records do alone" in line and "--optim.lr 0.004" in line


class Numbers:
    """Samples that are (record, draw)."""

    dataset = range(10)

    def collate(self, samples):
        return samples

    def keys(self, batch):
        return [f"key{record}" for record, _ in batch]


def test_what_stands_in_is_a_function_of_the_draw_alone():
    from pretrain.engine.nonfinite import WithoutKeys

    class Stream:
        def __len__(self):
            return 10

        def order(self, epoch):
            return np.random.default_rng(epoch).permutation(10)

        def __getitem__(self, item):
            return item

    stage = Numbers()
    stage.dataset = Stream()
    left = WithoutKeys(stage, ["key3", "key7"], seed=0)

    def samples(world: int, seen: int, count: int) -> list:
        parts = [GlobalBatches(left, 4 // world, rank, world, seen) for rank in range(world)]
        steps = zip(*(iter(part) for part in parts), strict=True)
        drawn = [part for step in islice(steps, count) for part in step]
        return [left[item] for part in drawn for item in part]

    one = samples(1, 0, 20)
    assert one == samples(2, 0, 20) and one[20:] == samples(2, 20, 15)
    assert not {3, 7} & {record for record, _ in one}
    plain = [(int(stage.dataset.order(d // 10)[d % 10]), d) for d in range(80)]
    for found, wanted in zip(one, plain, strict=True):
        assert found == wanted or wanted[0] in (3, 7)
    stand_ins = {found[0] for found, wanted in zip(one, plain, strict=True) if found != wanted}
    assert len(stand_ins) > 3


def test_leaving_out_every_record_is_refused():
    from data_prep.common.errors import UserError
    from pretrain.engine.nonfinite import WithoutKeys

    stage = Numbers()
    stage.dataset = type("All", (), {"__len__": lambda _: 3, "__getitem__": lambda _, i: i})()
    with pytest.raises(UserError, match="skip_keys: they leave no record"):
        WithoutKeys(stage, ["key0", "key1", "key2"], 0)[0, 0]
