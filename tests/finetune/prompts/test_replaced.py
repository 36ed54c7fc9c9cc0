"""SAM-Med2D's training: points replace each other where the model is wrong, a step per round."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from data_prep.common.cli import run_command
from data_prep.common.components import Component
from data_prep.common.errors import UserError
from finetune.config import ModelConfig
from finetune.data.dataset import SegmentationBatch
from finetune.inference.loading import SEGMENTER, load_segmenter
from finetune.inference.prompted import PromptedImage
from finetune.model.building import build_model
from finetune.model.decoder import ALWAYS, Decoded
from finetune.model.losses import SegmentationLoss
from finetune.model.prompt_encoder import Prompts
from finetune.prompts.mixed import Mixed
from finetune.prompts.replaced import ReplacedPoints, wrong_points
from finetune.rounds import PromptedLoss
from finetune.train import COMMAND
from pretrain.encoder.pixels import normalise_pixels
from pretrain.engine.checkpoint import latest_checkpoint
from pretrain.sizes import SIZES, EncoderSize

SIZE = 32


class TopHalf(nn.Module):
    """Stands in for a segmenter that finds the top half of each image, padding too."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Prompts] = []
        self.prompt_encoder = nn.Linear(1, 1)
        self.decoder = SimpleNamespace(parts={"prompt_encoder": self.prompt_encoder})

    def decode(self, embeddings: Tensor, prompts: Prompts, multimask: bool = False) -> Decoded:
        assert multimask
        self.asked.append(prompts)
        half = -torch.ones(len(prompts), 1, SIZE // 4, SIZE // 4)
        half[:, :, : SIZE // 8] = 1
        half = half + 0 * embeddings.sum() + 0 * self.prompt_encoder.weight.sum()
        iou = torch.tensor([[0.1, 0.9, 0.2]]).expand(len(prompts), 3)
        return Decoded(torch.cat([-half, half, half - 5], 1), iou)

    def upsample(self, low_res: Tensor) -> Tensor:
        return low_res.repeat_interleave(4, 2).repeat_interleave(4, 3)


def batch_of() -> SegmentationBatch:
    """Two images with one disc each; of the second the lower quarter is padding."""
    rows, columns = np.ogrid[:SIZE, :SIZE]
    masks = [(rows - y) ** 2 + (columns - x) ** 2 < 30 for y, x in ((16, 10), (18, 20))]
    valid = torch.ones(2, SIZE, SIZE, dtype=torch.bool)
    valid[1, 24:] = False
    images, targets = torch.zeros(2, 1, SIZE, SIZE), torch.zeros(2, dtype=torch.int64)
    truths = torch.from_numpy(np.stack(masks))
    return SegmentationBatch(["a", "b"], images, valid, truths, torch.arange(2), targets)


def asked_in(prompting: ReplacedPoints, seed: int) -> list[Prompts]:
    model, batch, rng = TopHalf(), batch_of(), np.random.default_rng(seed)
    batch = replace(batch, first=prompting.prepare(batch, rng))
    rounds = list(prompting.predictions(model, torch.zeros(2, 1), batch, rng))
    assert len(rounds) == prompting.rounds + 1 and all(each.trained for each in rounds)
    return model.asked


def test_points_are_uniform_over_the_wrong_pixels() -> None:
    rng = np.random.default_rng(0)
    truths, found, area = (torch.from_numpy(rng.random((3, 6, 7)) < 0.5) for _ in range(3))
    truths, found, area = (each[..., :6].contiguous() for each in (truths, found, area))
    found[1] = truths[1]  # nothing is wrong
    points, labels = wrong_points(found, truths, area, 4000, rng)
    assert points.shape == (3, 4000, 2) and labels.shape == (3, 4000)
    assert (labels[1] == -1).all()
    for mask in (0, 2):
        wrong = [
            (x, y)
            for y in range(6)
            for x in range(6)
            if found[mask, y, x] != truths[mask, y, x] and area[mask, y, x]
        ]
        drawn = [tuple(point) for point in points[mask].long().tolist()]
        assert set(drawn) == set(wrong)
        counts = np.array([drawn.count(pixel) for pixel in wrong])
        expected = 4000 / len(wrong)
        assert np.abs(counts - expected).max() < 5 * expected**0.5
        assert labels[mask].tolist() == [int(truths[mask, y, x]) for x, y in drawn]


def test_each_round_has_new_points_on_errors_and_two_have_the_mask_alone() -> None:
    prompting, batch = ReplacedPoints(box_share=0.0), batch_of()
    wrong = batch.masks.clone()
    wrong[:, : SIZE // 2] ^= True
    wrong &= batch.valid
    numbers, alone = set(), set()
    for seed in range(12):
        first, *later = asked_in(prompting, seed)
        assert first.masks is None and first.boxes is None and first.labels.eq(1).all()
        x, y = first.points[:, 0].long().T
        assert first.points.shape == (2, 1, 2) and batch.masks[[0, 1], y, x].all()
        without = [index for index, prompts in enumerate(later) if prompts.points is None]
        assert len(without) == 2 and without[-1] == 7
        alone.add(without[0])
        for prompts in later:
            # the mask that the model expects most of, as logits
            assert prompts.masks[:, 0, 0, 0].eq(1).all() and prompts.boxes is None
            if prompts.points is None:
                continue
            numbers.add(prompts.points.shape[1])
            for mask in range(2):
                x, y = prompts.points[mask].long().T
                assert wrong[mask, y, x].all()
                assert torch.equal(prompts.labels[mask], batch.masks[mask, y, x].long())
    assert numbers == {1, 3, 5, 9} and alone <= {1, 2, 3, 4, 5, 6} and len(alone) > 3
    plain = asked_in(replace(prompting, mask_only=False, points=(2,)), 0)
    assert [prompts.points.shape[1] for prompts in plain] == [1] + 8 * [2]


def test_a_box_is_given_in_the_first_round_alone() -> None:
    first, *later = asked_in(ReplacedPoints(box_share=1.0, rounds=2), 0)
    assert first.boxes.shape == (2, 4) and first.points is None
    assert all(prompts.boxes is None for prompts in later)
    kinds = [asked_in(ReplacedPoints(rounds=0), seed)[0].boxes is None for seed in range(20)]
    assert 4 < sum(kinds) < 16


@pytest.mark.parametrize("decoder_only", [True, False])
@pytest.mark.parametrize("step_per_round", [True, False])
def test_after_the_first_round_only_what_may_still_learn_does(decoder_only, step_per_round) -> None:
    model, batch, rng = TopHalf(), batch_of(), np.random.default_rng(0)
    embeddings = torch.zeros(2, 1, requires_grad=True)
    options = {"decoder_only": decoder_only, "step_per_round": step_per_round}
    prompting = ReplacedPoints(rounds=2, **options)
    learned = []
    for each in prompting.predictions(model, embeddings, batch, rng):
        inputs = [embeddings, model.prompt_encoder.weight]
        if not each.decoded.low_res.requires_grad:
            learned.append([False, False])
            continue
        found = torch.autograd.grad(each.decoded.low_res.sum(), inputs, allow_unused=True)
        learned.append([gradient is not None for gradient in found])
    later = [not decoder_only and not step_per_round, not decoder_only]
    assert learned == [[True, True]] + 2 * [later]
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:.*pad SAM's attention windows")
@pytest.mark.parametrize("decoder_only", [True, False])
def test_a_step_per_round_is_a_plain_loop(decoder_only, monkeypatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", EncoderSize(32, 2, 2, (1,)))
    config = ModelConfig("tiny", SIZE, Component("finetune.adapters.SamMed2dAdapter"))
    loss, batch = SegmentationLoss(), batch_of()
    batch = replace(batch, images=torch.randint(0, 256, (2, 1, SIZE, SIZE), dtype=torch.uint8))
    prompting = ReplacedPoints(
        box_share=0.0, rounds=3, points=(2,), mask_only=False, decoder_only=decoder_only
    )
    models, optimizers = [], []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(build_model(config))
        optimizers.append(torch.optim.SGD(models[-1].parameters(), lr=0.05))

    ours = PromptedLoss(models[0], prompting, loss)
    found = []
    for results in ours.each_round(batch, np.random.default_rng(1)):
        optimizers[0].zero_grad()
        results["loss"].backward()
        optimizers[0].step()
        found.append(results["mean"].item())

    model, rng, losses = models[1], np.random.default_rng(1), []
    prompts = Prompts(batch.image, *prompting.prepare(batch, rng)[:2])
    embeddings = model.encode(normalise_pixels(batch.images, batch.valid))
    for index in range(4):
        if index == 1 and decoder_only:
            model.decoder.parts["prompt_encoder"].requires_grad_(False)
        decoded = model.decode(embeddings, prompts, True)
        valid = batch.valid[batch.image]
        logits = model.upsample(decoded.low_res)
        value = loss(logits, batch.masks[:, None], valid[:, None], decoded.iou)[0]
        optimizers[1].zero_grad()
        value.backward()
        optimizers[1].step()
        losses.append(value.item())
        best = decoded.iou.argmax(1)
        low_res = decoded.low_res.detach()[torch.arange(2), best][:, None]
        wrong = model.upsample(low_res)[:, 0] > 0
        rng.choice(prompting.points)
        points = wrong_points(wrong, batch.masks, valid, 2, rng)
        prompts, embeddings = Prompts(batch.image, *points, masks=low_res), embeddings.detach()
    assert found == pytest.approx([np.mean(losses[: n + 1]) for n in range(4)], rel=1e-5)
    for (name, value), other in zip(
        models[0].state_dict().items(), models[1].state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, other, msg=name)


def test_wrong_options_and_mixtures_are_refused() -> None:
    for options, message in (
        ({"points": ()}, r"prompts.points \[\]"),
        ({"points": (0,)}, r"prompts.points \[0\]"),
        ({"rounds": -1}, "prompts.rounds is -1"),
        ({"box_share": 2.0}, "prompts.box_share 2.0"),
    ):
        with pytest.raises(UserError, match=message):
            ReplacedPoints(**options)
    path = "finetune.prompts.replaced.ReplacedPoints"
    clicks = Component("finetune.prompts.simulate.ClicksAndBoxes")
    with pytest.raises(UserError, match="steps per batch must be the same"):
        Mixed(kinds={"points": Component(path), "clicks": clicks})
    with pytest.raises(UserError, match="multimask must be the same"):
        Mixed(kinds={"points": Component(path, {"step_per_round": False}), "clicks": clicks})
    points = Mixed(kinds={name: Component(path, {"rounds": 2}) for name in "ab"})
    assert (points.steps, points.multimask) == (3, ALWAYS)


RECIPE = Path("configs/finetune/sam_med2d.yaml")
TINY = ["--model.encoder_size=vit_t", "--model.image_size=64", "--prompts.rounds=2"]
TINY += ["--optim.steps=2", "--optim.batch_size=2", "--optim.warmup_steps=0"]
TINY += ["--data.workers=0", "--data.validation=0", "--precision=no"]
TINY += ["--log_every=1", "--save_every=1", "--threads=1"]


def train(run: Path, shards: Path, *options: str) -> list[dict[str, float]]:
    recipe = yaml.safe_load(RECIPE.read_text())
    del recipe["evaluators"]  # of seconds each
    path = run.parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    given = [f"--config={path}", *TINY, f"--data.shards={shards}", f"--output={run}", *options]
    run_command("finetune/train.py", COMMAND, given)
    AcceleratorState._reset_state(reset_partial_state=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in ("loss", "dice_first", "dice_last")} for row in rows]


@pytest.mark.usefixtures("shallow")
@pytest.mark.filterwarnings("ignore:.*pad SAM's attention windows")
def test_a_run_steps_once_per_round_resumes_exactly_and_answers_with_three_masks(
    labelled_shards, tmp_path
) -> None:
    run = tmp_path / "run"
    whole = train(run, labelled_shards)
    assert len(whole) == 2
    checkpoint = latest_checkpoint(run)
    state = torch.load(checkpoint.folder / "optimizer.pt", weights_only=True)
    counts = {int(each["step"]) for each in state["state"].values()}
    # per batch one step of all parts, and two of the decoder alone
    assert {2, 6} <= counts and max(counts) == 6

    expected = checkpoint.weights(SEGMENTER)
    (run / "DONE").unlink()
    shutil.rmtree(checkpoint.folder)
    assert train(run, labelled_shards, "--resume=auto") == whole
    found = latest_checkpoint(run).weights(SEGMENTER)
    assert all(torch.equal(found[key], expected[key]) for key in expected)

    segmenter = load_segmenter(run, torch.device("cpu"))
    assert segmenter.multimask == ALWAYS and segmenter.previous_mask
    asked = []
    decode = segmenter.decode
    segmenter.decode = lambda *given: asked.append(given[2]) or decode(*given)
    prompted = PromptedImage(segmenter, np.zeros((64, 64), np.uint8))
    _, logits = prompted.predict(np.array([[[9, 9]]]), np.array([[1]]))
    prompted.predict(np.array([[[9, 9], [20, 9]]]), np.array([[1, 0]]), previous=logits)
    assert asked == [True, True]
