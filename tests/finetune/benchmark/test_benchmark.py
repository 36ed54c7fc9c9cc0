"""The benchmark of stage two: every part gives its ratio, and compares what is the same."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.common.cli import run_program
from data_prep.common.errors import UserError
from finetune.__main__ import COMMANDS
from finetune.benchmark import use
from finetune.benchmark.bench import Bench
from finetune.benchmark.clicks import masks_of
from finetune.benchmark.config import BenchmarkOptions
from finetune.benchmark.plain_clicks import plain_first_clicks, plain_next_click
from finetune.benchmark.rounds import batch_of, encode_each_round, loss_of, prompting_of
from finetune.model.losses import SegmentationLoss
from finetune.prompts.clicks import ClickSampling, next_click, random_clicks
from finetune.rounds import PromptedLoss
from pretrain.sizes import SIZES, EncoderSize

pytestmark = pytest.mark.filterwarnings("ignore:.*pad SAM's attention windows")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "vit_t", EncoderSize(32, 2, 2, (1,)))


SMALL = ["--encoder_size=vit_t", "--image_size=64", "--click_size=128", "--masks=2", "--rounds=3"]
SMALL += ["--images=4", "--repeats=1", "--device=cpu"]
NUMBER = r"\d+\.\d+"


def test_every_part_prints_its_ratios_and_keeps_them(tmp_path, capsys) -> None:
    path = tmp_path / "results.md"
    words = ["benchmark", *SMALL, "--parts=[clicks, rounds, cache, click]", f"--results={path}"]
    run_program("finetune", COMMANDS, words)
    kept = path.read_text()
    assert kept.partition("\n## ")[2].partition("\n")[2].strip() in capsys.readouterr().out
    for row in (
        rf"\| plain \| {NUMBER} \| {NUMBER} \| {NUMBER} \| 1\.0 x \|",
        rf"\| ours \| {NUMBER} \| {NUMBER} \| {NUMBER} \| {NUMBER} x \|",
        rf"\| image encoded in each round \| {NUMBER} \| 1\.00 x \|",
        rf"\| 3 rounds, image encoded once \| {NUMBER} \| {NUMBER} x \|",
        r"\| 1 round \| \d+ \| 1\.00 x \|",
        rf"\| 3 rounds \| \d+ \| {NUMBER} x \|",
        rf"\| 3 rounds, graphs kept \| \d+ \| {NUMBER} x \|",
        rf"\| without cache \| {NUMBER} \| 1\.00 x \|",
        rf"\| first, cache written \| {NUMBER} \| {NUMBER} x \|",
        rf"\| later, cache read \| {NUMBER} \| {NUMBER} x \|",
        rf"\| image to embedding \| {NUMBER} \| 1\.000 \|",
        rf"\| first click to mask \| {NUMBER} \| {NUMBER} \|",
        rf"\| next click to mask \| {NUMBER} \| {NUMBER} \|",
    ):
        assert len(re.findall(row, kept)) == 1, row


@pytest.fixture
def bench() -> Bench:
    config = BenchmarkOptions("vit_t", 64, rounds=3)
    torch.manual_seed(0)
    return Bench(config, torch.device("cpu"), None, None)


def test_both_forms_of_the_step_have_the_same_gradient(bench, monkeypatch) -> None:
    monkeypatch.setattr(Bench, "bf16", False)
    segmenter, batch = bench.segmenter(adapters=True), batch_of(bench)
    model = PromptedLoss(segmenter, prompting_of(3), SegmentationLoss())
    found = []
    for step in (
        lambda: loss_of(bench, model, batch).backward(),
        lambda: encode_each_round(bench, model, batch),
    ):
        step()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    once, each = found
    assert once.keys() == each.keys()
    assert {name.split(".")[1] for name in once} >= {"image_encoder", "mask_decoder"}
    assert "segmenter.image_encoder.blocks.0.attn.qkv.weight" not in once
    for name, gradient in once.items():
        torch.testing.assert_close(each[name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_the_plain_form_places_the_same_clicks(seed: int) -> None:
    truths, small = masks_of(96, 3)
    sampling = ClickSampling()
    predictions = small.repeat(4, 1).repeat(4, 2)
    for truth, prediction in zip(truths, predictions, strict=True):
        plain = plain_first_clicks(truth, np.random.default_rng(seed), sampling)
        ours = random_clicks(truth, np.random.default_rng(seed), sampling)
        assert np.array_equal(plain[0], ours[0]) and np.array_equal(plain[1], ours[1])
        clicked = ours[0]
        for number in range(3):
            draws = [np.random.default_rng([seed, number]) for _ in range(2)]
            expected = next_click(prediction, truth, clicked, draws[0])
            found = plain_next_click(prediction, truth, clicked, draws[1])
            assert np.array_equal(found[0], expected[0]) and found[1] == expected[1]
            clicked = np.concatenate([clicked, found[0][None]])


def test_the_start_of_predict_ends_where_its_model_would_be_loaded(capsys, monkeypatch) -> None:
    started = []

    def start(command: list[str]) -> None:
        started.append(command)
        if command[1] != "-m":
            return
        with pytest.raises(SystemExit) as stopped:
            run_program("python -m finetune", COMMANDS, command[3:])
        assert stopped.value.code == 2
        assert use.MISSING in capsys.readouterr().err

    monkeypatch.setattr(use, "_start", start)
    run_program("finetune", COMMANDS, ["benchmark", *SMALL, "--parts=startup", "--results=null"])
    out = capsys.readouterr().out
    assert len(started) == 4  # a warm-up and a timed call of each
    assert re.search(rf"\| predict, up to its model \| {NUMBER} \| {NUMBER} x \|", out)


def test_a_command_that_fails_otherwise_is_told(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise ValueError('another reason')")
    with pytest.raises(UserError, match="failed: ValueError: another reason"):
        use._start([use.sys.executable, str(script)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": 0}, "masks is 0; it must be at least 1"),
        ({"image_size": 70}, "image_size is 70; it must be a multiple of 16"),
        ({"encoder_size": "vit_q"}, "no size 'vit_q'"),
        ({"parts": ()}, "parts must not be empty"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, message) -> None:
    with pytest.raises(UserError, match=message):
        BenchmarkOptions(**options)
