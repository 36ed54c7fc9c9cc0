"""bf16 is computed where a processor is fast in it, and nowhere else on a CPU."""

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

from data_prep.common.cli import run_command
from data_prep.common.parsing import parse
from pretrain.benchmark.clock import precisions
from pretrain.config import PretrainConfig
from pretrain.engine.loop import build_accelerator
from pretrain.train import COMMAND

pytestmark = pytest.mark.usefixtures("shallow")

RECIPE = ("--config=configs/pretrain/quickstart.yaml", "--optim.steps=2", "--optim.warmup_steps=1")
SMALL = ("--optim.batch_size=4", "--data.workers=0", "--log_every=1")
CPU = torch.device("cpu")


@pytest.fixture(params=[False, True])
def fast(request, monkeypatch) -> bool:
    monkeypatch.setattr("pretrain.engine.cpu.has_fast_bf16", lambda: request.param)
    return request.param


def test_bf16_is_for_processors_that_are_fast_in_it(fast, tmp_path) -> None:
    words = [*RECIPE, f"--output={tmp_path}", "--data.shards=x", "--precision=bf16"]
    config, _ = parse(PretrainConfig, "train", words)
    found = build_accelerator(config, False).mixed_precision
    AcceleratorState._reset_state(reset_partial_state=True)
    assert found == ("bf16" if fast else "no")
    assert list(precisions(CPU)) == (["fp32", "bf16"] if fast else ["fp32"])
    assert list(precisions(torch.device("cuda"))) == ["fp32", "bf16"]


def test_where_bf16_is_slow_a_run_computes_in_fp32_and_says_so(
    image_shards, tmp_path, monkeypatch, capsys, read_losses
) -> None:
    monkeypatch.setattr("pretrain.engine.cpu.has_fast_bf16", lambda: False)
    losses = {}
    for precision in ("bf16", "no"):
        run = tmp_path / precision
        options = (f"--data.shards={image_shards}", f"--output={run}", f"--precision={precision}")
        run_command("pretrain/train.py", COMMAND, [*RECIPE, *SMALL, *options])
        AcceleratorState._reset_state(reset_partial_state=True)
        losses[precision] = read_losses(run)
        said = "precision: bf16 is slow on this CPU, so this run computes in fp32"
        assert (said in capsys.readouterr().out.splitlines()) == (precision == "bf16")
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["precision"] == precision  # on a GPU the run would go on as was asked
    assert losses["bf16"] == losses["no"]
