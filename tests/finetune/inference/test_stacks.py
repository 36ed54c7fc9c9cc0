"""Whole volumes by a model that encodes neighbouring slices together."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from data_prep.common.cli import run_command
from data_prep.common.components import Component
from finetune.config import CaseSelection, ModelConfig
from finetune.data.cases import LabelledCases
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.labelled import encode_labelled
from finetune.evaluation.protocols import Box, Propagated
from finetune.inference.loading import load_segmenter
from finetune.inference.prompted import PromptedImage, frame
from finetune.inference.stacks import stack_around
from finetune.inference.volume import PromptedVolume
from finetune.model.building import build_model
from finetune.model.segmenter import Segmenter
from finetune.train import COMMAND
from pretrain.sizes import SIZES, EncoderSize

LABELS = {"liver": [1], "tumour": [2]}
CPU = torch.device("cpu")


def test_each_slice_is_in_the_stack_that_has_it_nearest_to_its_middle():
    for count in range(1, 15):
        for slices in range(2, 9):
            plans = [stack_around(depth, count, slices) for depth in range(count)]
            stacks = {stack for stack, _ in plans}
            for depth, (stack, central) in enumerate(plans):
                assert depth in stack and depth in central
                assert len(stack) == min(slices, count) and stack.start >= 0 and stack[-1] < count
                own = abs(depth - (stack[0] + stack[-1]) / 2)
                others = [abs(depth - (other[0] + other[-1]) / 2) for other in stacks]
                assert own == min(others)
                assert central == [n for n, (other, _) in enumerate(plans) if other == stack]
                if slices // 2 <= depth < count - slices // 2:  # away from the volume's ends
                    assert own <= slices / 4
            assert len(stacks) <= 1 + -(-max(0, count - slices) // (slices // 2))


@pytest.fixture
def deep(monkeypatch: pytest.MonkeyPatch) -> Segmenter:
    """A tiny segmenter for stacks of 5 slices, in which neighbours count."""
    monkeypatch.setitem(SIZES, "tiny", EncoderSize(32, 2, 2, (1,)))
    torch.manual_seed(0)
    adapter = Component("finetune.adapters.Msa3dAdapter")
    segmenter = build_model(ModelConfig("tiny", 64, adapter)).eval()
    for block in segmenter.image_encoder.blocks:
        for parameter in block.adapter.parameters():
            parameter.data = torch.randn_like(parameter) * 0.3
    segmenter.stack = 5
    return segmenter


class Counted:
    """Counts what a segmenter encodes at once."""

    def __init__(self, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
        self.encode, self.batches = segmenter.encode, []
        monkeypatch.setattr(segmenter, "encode", self)

    def __call__(self, images: Tensor, stacks: Sequence[int] = ()) -> Tensor:
        self.batches.append(len(images))
        assert sum(stacks or [1]) == len(images)
        return self.encode(images, stacks)


def test_slices_are_encoded_with_their_neighbours_a_stack_at_a_time(deep, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 40, 60), dtype=np.uint8)
    expected = {}
    with torch.no_grad():
        for depth in range(12):
            stack, _ = stack_around(depth, 12, 5)
            framed = torch.cat([frame(pixels[n], 64, CPU) for n in stack])
            expected[depth] = deep.encode(framed, [5])[depth - stack.start]
    counted = Counted(deep, monkeypatch)
    for order in (range(12), (7, 0, 11, 3, *range(12))):
        counted.batches.clear()
        volume = PromptedVolume(deep, 12, pixels.__getitem__)
        for depth in order:
            prompted = volume[depth]
            torch.testing.assert_close(prompted.embedding[0], expected[depth], atol=0, rtol=0)
            assert prompted.resize.original == (40, 60)
        starts = {stack_around(depth, 12, 5)[0].start for depth in range(12)}
        assert counted.batches == [5] * len(starts)
    alone = PromptedImage(deep, pixels[6]).embedding[0]
    assert (alone - expected[6]).abs().max() > 1e-3


def test_memory_is_bounded_by_the_stack(deep, monkeypatch):
    pixels = np.zeros((30, 64, 64), np.uint8)
    counted = Counted(deep, monkeypatch)
    volume = PromptedVolume(deep, 30, pixels.__getitem__, keep_bytes=0)
    for depth in range(30):
        assert volume[depth].embedding.untyped_storage().nbytes() == 256 * 4 * 4 * 4
        assert len(volume._kept) <= 4  # what one stack gives
    assert set(counted.batches) == {5} and len(counted.batches) <= 15


def test_a_thin_volume_is_one_stack_and_a_picture_is_alone(deep, monkeypatch):
    counted = Counted(deep, monkeypatch)
    thin = PromptedVolume(deep, 3, np.zeros((3, 64, 64), np.uint8).__getitem__)
    assert [len(thin[n].embedding) for n in range(3)] == [1] * 3 and counted.batches == [3]
    picture = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    one = PromptedVolume(deep, 1, picture[None].__getitem__)[0].embedding
    torch.testing.assert_close(one, PromptedImage(deep, picture).embedding, atol=0, rtol=0)


def test_a_labelled_slice_is_encoded_as_in_its_volume(deep, make_shards, organs):
    cases = LabelledCases(
        CaseSelection(shards=make_shards([organs(0, depth=9), organs(1)], LABELS))
    )
    for image in cases.images:
        _, pixels, _ = cases.read(image)
        found = encode_labelled(deep, cases, image, pixels).embedding
        whole = cases.shards.record(image.record).image
        slices = whole[None] if image.depth is None else whole
        volume = PromptedVolume(deep, len(slices), slices.__getitem__)
        torch.testing.assert_close(found, volume[image.depth or 0].embedding, atol=0, rtol=0)


def train(shards: Path, run: Path, *options: str) -> list[dict[str, float]]:
    given = ["--config=configs/finetune/quickstart.yaml", "--optim.batch_size=2"]
    given += ["--optim.warmup_steps=0", "--data.workers=0", "--model.image_size=64"]
    given += [f"--data.shards={shards}", f"--output={run}", "--log_every=1", *options]
    run_command("finetune/train.py", COMMAND, given)
    AcceleratorState._reset_state(reset_partial_state=True)
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


DEEP = ("--model.encoder_adapter=Msa3dAdapter", "--prompts=Carried", "--data.stack=3")
VALIDATION = "{class_path: finetune.validation.Validation, every: 2, clicks: [1], max_images: 2"
VALIDATION += ", volumes: 1}"


def test_a_run_on_stacks_is_validated_resumed_and_evaluated(shallow, make_shards, organs, tmp_path):
    volumes = [organs(seed, (40, 40), depth=3 + seed) for seed in range(3)]
    shards, run = make_shards(volumes, LABELS), tmp_path / "run"
    options = ["--data.validation=0.34", f"--evaluators={{validation: {VALIDATION}}}", *DEEP]
    options += ["--optim.steps=4", "--save_every=2"]
    rows = train(shards, run, *options)
    numbers = {"1_click", "box", "1_click_in_one_slice", "box_in_one_slice", "score"}
    judgements = [row for row in rows if "validation/score" in row]
    assert [set(row) - {"step"} for row in judgements] == [{f"validation/{n}" for n in numbers}] * 2
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 4 and np.isfinite(losses).all()

    newest = sorted((run / "checkpoints").iterdir())[-1]
    newest.rename(tmp_path / newest.name)  # as if it had been stopped before
    (run / "DONE").unlink()
    again = train(shards, run, *options, "--resume=auto")
    assert [row["loss"] for row in again if "loss" in row] == losses

    segmenter = load_segmenter(run, CPU)
    assert segmenter.stack == 3 and segmenter.image_encoder.for_stacks
    cases = LabelledCases(CaseSelection(shards=shards, cases=1))
    found = evaluate(segmenter, cases, [Propagated((1,)), Box()])
    assert {row.protocol for row in found} >= {"box in one slice", "box per slice"}


def test_a_model_in_2d_trained_on_stacks_is_used_slice_by_slice(
    shallow, make_shards, organs, tmp_path
):
    shards = make_shards([organs(0, (40, 40), depth=4)], LABELS)
    train(shards, tmp_path / "run", *DEEP[1:], "--optim.steps=1")
    assert load_segmenter(tmp_path / "run", CPU).stack == 1


@pytest.mark.parametrize(
    ("options", "name"), [(DEEP[:1], "Msa3dAdapter"), (DEEP[1:2], "carried.Carried")]
)
def test_stacks_of_one_slice_teach_nothing_about_neighbours(
    shallow, make_shards, organs, tmp_path, capsys, options, name
):
    shards = make_shards([organs(0, (40, 40), depth=4)], LABELS)
    with pytest.raises(SystemExit):
        train(shards, tmp_path / "run", *options, "--optim.steps=1")
    AcceleratorState._reset_state(reset_partial_state=True)
    error = capsys.readouterr().err
    assert "data.stack is 1, and finetune." in error and name in error
    assert not (tmp_path / "run").exists()
