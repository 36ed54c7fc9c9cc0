"""Stage one on a truncated shard: refused, and continued without its lost records."""

import json
import re
import shutil

import pytest
from accelerate.state import AcceleratorState

from data_prep.common.cli import run_command
from data_prep.loader import damaged
from pretrain.train import COMMAND


def test_a_run_that_a_truncated_shard_ended_goes_on_without_it(
    image_shards, tmp_path, monkeypatch, capsys, read_losses
):
    shards = shutil.copytree(image_shards, tmp_path / "shards")
    shard = sorted(shards.glob("*.tar"))[3]
    with shard.open("r+b") as file:
        file.truncate(0)
    options = ["--config=configs/pretrain/quickstart.yaml", f"--data.shards={shards}"]
    options += ["--optim.steps=3", "--optim.warmup_steps=1", "--optim.batch_size=4"]
    options += ["--log_every=1", "--data.workers=0"]
    options += ["--objectives.emix.weight=0", "--objectives.shed.weight=0"]

    def train(*more: str) -> str:
        try:
            run_command("train.py", COMMAND, [*options, f"--output={tmp_path / 'run'}", *more])
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
        return capsys.readouterr().out

    with pytest.raises(SystemExit) as stopped:
        train()
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert f"{shard}: is shorter than its index" in line
    skip = ("--resume=auto", "--data.damaged=skip")
    with pytest.raises(SystemExit) as stopped:
        train(*skip)
    assert "damaged records, more than 1% of 40" in capsys.readouterr().err
    monkeypatch.setattr(damaged, "MOST", 0.5)
    told = train(*skip)
    listed = tmp_path / "run" / "damaged.jsonl"
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    assert {line["shard"] for line in lines} == {shard.name}
    assert re.search(
        rf"{len(lines)} damaged records were replaced; see {re.escape(str(listed))}", told
    )
    rows = read_losses(tmp_path / "run")
    # drawing at the end reads some more
    assert 1 <= rows[-1]["damaged"] <= len(lines) and len(rows) == 3
