"""Heads learn two targets on a frozen encoder, one of them often absent; and are used without
prompts."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

import finetune
from data_prep.common.cli import run_command, run_program
from data_prep.common.errors import UserError
from data_prep.common.parsing import parse
from data_prep.records import Sample
from finetune.__main__ import COMMANDS
from finetune.config import CaseSelection, ModelConfig, TrainConfig
from finetune.data.cases import LabelledCases
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.protocols import TargetOnly
from finetune.heads import SamedDecoder
from finetune.inference.loading import load_segmenter
from finetune.model.building import build_model
from finetune.model.losses import SegmentationLoss
from finetune.publish.card import model_card
from finetune.publish.config import PublishOptions
from finetune.publish.facts import read_run
from finetune.stage import SegmentationStage
from finetune.train import COMMAND
from pretrain.engine.checkpoint import best_checkpoint, latest_checkpoint

ROOT = Path(__file__).parents[3]
LABELS = {"bright": [1], "dark": [2]}
CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore:.*pad SAM's attention windows")


def quadrants(seed: int) -> Sample:
    """A bright quadrant or a dark one, or both, or neither, on grey."""
    rng = np.random.default_rng(seed)
    image, label = rng.normal(120, 6, (64, 64)), np.zeros((64, 64), np.uint8)
    for value, place in zip((1, 2), rng.permutation(4)[:2], strict=True):
        if seed % 4 in (0, value):
            rows, columns = (slice(32 * each, 32 * each + 32) for each in divmod(int(place), 2))
            image[rows, columns] += 90 * (3 - 2 * value)
            label[rows, columns] = value
    return Sample(image.clip(0, 255).astype(np.uint8), label, group=f"p{seed}")


@pytest.fixture
def made(tmp_path, make_shards):
    """A tiny SAM checkpoint, 48 pictures to train on, and 8 others."""
    torch.save(build_model(ModelConfig("tiny", 64)).state_dict(), tmp_path / "sam.pth")
    make_shards([quadrants(seed) for seed in range(48)], LABELS, "train")
    make_shards([quadrants(seed) for seed in range(48, 56)], LABELS, "test")
    return tmp_path


def options(made: Path, recipe: str) -> list[str]:
    return [
        f"--config={ROOT / 'configs/finetune'}/{recipe}.yaml",
        *(f"--data.shards={made / 'train'}", f"--sam={made / 'sam.pth'}"),
        *(f"--output={made / 'run'}", "--model.image_size=64", "--data.workers=0"),
    ]


@pytest.mark.parametrize(
    ("recipe", "rate", "steps"),
    [("autosam", 5e-4, 60), ("cnn_head", 1e-3, 80), ("linear_head", 1e-2, 60)],
)
def test_a_head_learns_two_targets_and_that_they_may_be_absent(made, recipe, rate, steps):
    still = [f"--data.augmentation.{name}=0" for name in ("rotation", "scale", "translation")]
    given = [*options(made, recipe), "--data.validation=0", *still]
    config, _ = parse(TrainConfig, "train", given)
    torch.manual_seed(0)
    stage = SegmentationStage(config, CPU)
    before = {k: v.clone() for k, v in stage.segmenter.image_encoder.state_dict().items()}
    trained = [each for each in stage.model.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(trained, rate)
    stage.model.train()
    for step in range(steps):
        places = stage.dataset.order(step)[:4]
        samples = [stage.dataset[int(index), 4 * step + n] for n, index in enumerate(places)]
        loss, _ = stage.losses(stage.model, stage.collate(samples), step)
        optimiser.param_groups[0]["lr"] = rate * min(1, 3 * (1 - step / steps))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    after = stage.segmenter.image_encoder.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    cases = LabelledCases(CaseSelection(shards=made / "test"))
    rows = evaluate(stage.segmenter.eval(), cases, [TargetOnly()])
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row.protocol, []).append(row.dice)
    assert len(scores["no prompt"]) == len(scores["no prompt, absent"]) == 8
    assert min(scores["no prompt"]) > 0.8 and np.mean(scores["no prompt"]) > 0.9
    assert np.mean(scores["no prompt, absent"]) > 0.8


def test_dice_of_samed_is_that_of_each_target_in_the_whole_batch(made) -> None:
    """0.8 of it and 0.2 of cross entropy, against loops; slices without a target weigh little."""
    config, _ = parse(TrainConfig, "train", [*options(made, "samed"), "--data.validation=0"])
    stage = SegmentationStage(config, CPU)
    stage.model.train()
    samples = [stage.dataset[index, index] for index in range(12)]
    batch = stage.collate(samples)
    loss, _ = stage.losses(stage.model, batch, 0)
    prompting, rng = stage.model.prompting, np.random.default_rng(0)
    embeddings = stage.model._encode(batch, rng)
    (found,) = prompting.predictions(stage.segmenter, embeddings, batch, rng)
    probabilities = stage.segmenter.upsample(found.decoded.low_res).sigmoid()[:, 0].detach()
    terms = []
    for target in (0, 1):
        overlap = probability = truth = entropy = pixels = 0.0
        for number in np.flatnonzero(batch.targets == target):
            p, t = probabilities[number], batch.masks[number].double()
            valid = batch.valid[batch.image[number]]
            overlap += float((p * t)[valid].sum())
            probability += float(p[valid].sum())
            truth += float(t[valid].sum())
            entropy -= float((t * p.log() + (1 - t) * (1 - p).log())[valid].sum())
            pixels += int(valid.sum())
        dice = 1 - (2 * overlap + 1) / (probability + truth + 1)
        terms.append(0.8 * dice + 0.2 * entropy / pixels)
    assert 6 < batch.masks.flatten(1).any(1).sum() < 18  # some images lack a target
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-4)


def test_masks_that_are_carried_have_no_loss_together(made) -> None:
    given = [f"--data.shards={made / 'train'}", f"--output={made / 'run'}", "--model.image_size=64"]
    given += ["--model.encoder_size=tiny", "--prompts=finetune.prompts.carried.Carried"]
    config, _ = parse(TrainConfig, "train", [*given, "--loss.whole_batch=true", "--loss.iou=0"])
    with pytest.raises(UserError, match=r"loss\.whole_batch: masks that are carried .* false"):
        SegmentationStage(config, CPU)


def test_the_iou_of_a_mask_is_not_learned_from_the_whole_batch() -> None:
    with pytest.raises(UserError, match=r"loss\.whole_batch: .* set loss\.iou to 0"):
        SegmentationLoss(whole_batch=True)


def test_a_run_with_dice_over_the_batch_goes_on_with_as_many_images_in_a_pass(made, capsys) -> None:
    run = made / "run"
    given = [*options(made, "samed"), "--optim.steps=2", "--optim.batch_size=4", "--threads=1"]
    given += ["--optim.warmup_steps=0", "--data.validation=0", "--evaluators.validation=null"]
    run_command("finetune/train.py", COMMAND, [*given, "--save_every=1"])
    AcceleratorState._reset_state(reset_partial_state=True)
    (run / "DONE").unlink()
    shutil.rmtree(latest_checkpoint(run).folder)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run_command("finetune/train.py", COMMAND, [*given, "--resume=auto", "--optim.accumulate=2"])
    AcceleratorState._reset_state(reset_partial_state=True)
    error = capsys.readouterr().err.splitlines()[-1]
    assert "was started with images judged or normalised together 4, not 2; continue it" in error
    run_command("finetune/train.py", COMMAND, [*given, "--resume=auto"])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert (run / "DONE").is_file()


@pytest.mark.parametrize(
    ("recipe", "bound"),
    [("finetune/samed", True), ("finetune/cnn_head", False), ("baselines/beal", True)],
)
def test_passes_are_bound_where_images_are_judged_or_normalised_together(made, recipe, bound):
    given = [f"--config={ROOT / 'configs' / recipe}.yaml", f"--data.shards={made / 'train'}"]
    given += [f"--output={made / 'run'}", "--model.image_size=64", "--data.cache=null"]
    config, _ = parse(TrainConfig, "train", given)
    names = SegmentationStage(config, CPU).bound(4, 1)
    assert ("images judged or normalised together" in names) == bound


def test_calibration_asks_for_probabilities(made, capsys):
    """SAMed's masks of several targets are where an output is the largest, by how much it is."""
    given = [*options(made, "samed"), "--optim.steps=1", "--optim.batch_size=1", "--threads=1"]
    given += ["--optim.warmup_steps=0", "--data.validation=0", "--evaluators.validation=null"]
    run_command("finetune/train.py", COMMAND, given)
    AcceleratorState._reset_state(reset_partial_state=True)
    words = ["evaluate", f"--run={made / 'run'}", f"--data.shards={made / 'test'}", "--device=cpu"]
    words += ["--protocols=TargetOnly", "--calibration", f"--output={made / 'results'}"]
    with pytest.raises(SystemExit):
        run_program("finetune", COMMANDS, words)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: calibration: SamedDecoder gives no probabilities of several")
    assert not (made / "results").exists()
    assert SamedDecoder(64, ("alone",)).gives_log_odds


def test_a_run_is_validated_used_and_published_without_prompts(made, capsys):
    """With the decoder of a whole SAM checkpoint that was given as the encoder."""
    run = made / "run"
    given = [each.replace("--sam=", "--encoder=") for each in options(made, "autosam")]
    small = ["--optim.steps=4", "--optim.batch_size=4", "--optim.warmup_steps=0", "--threads=1"]
    small += ["--evaluators.validation.every=2", "--data.validation=0.25", "--log_every=1"]
    run_command("finetune/train.py", COMMAND, [*given, *small])
    AcceleratorState._reset_state(reset_partial_state=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    judged = [row for row in rows if "validation/score" in row]
    assert [row["step"] for row in judged] == [2, 4]
    for row in judged:
        parts = {name: row[name] for name in row if name.startswith("validation/no_prompt")}
        assert "validation/no_prompt" in parts
        assert row["validation/score"] == pytest.approx(np.mean(list(parts.values())))
    best = max(judged, key=lambda row: (row["validation/score"], -row["step"]))
    assert best_checkpoint(run).folder.name == f"step-{best['step']:08d}"

    segmenter = load_segmenter(run, CPU)
    assert segmenter.targets == ("bright", "dark") and not segmenter.decoder.takes_prompts
    sample = quadrants(16)
    Image.fromarray(sample.image).save(made / "image.png")
    command = f"predict --run {run} --input {made}/image.png --output {made}/mask.png"
    run_program("finetune", COMMANDS, [*shlex.split(command), "--device=cpu"])
    predictor = finetune.Predictor(run, "cpu")
    predictor.set_image(sample.image)
    masks, scores, logits = predictor.predict()
    expected = np.where(masks[1], 2, masks[0])  # of two that overlap the later one counts
    assert np.array_equal(np.array(Image.open(made / "mask.png")), expected)
    assert np.isnan(scores).all() and logits.shape == (2, 16, 16)
    assert np.array_equal(predictor.predict(target="dark")[0][0], masks[1])

    facts = read_run(run)
    config, _ = parse(PublishOptions, "publish", ["--run=x", "--repo=a/b", "--license=mit"])
    card = model_card(config, facts, [])
    assert "    --input image.png --output mask.png\n" in card
    assert "The values in a mask are 1 bright and 2 dark." in card
    assert "predictor.predict()" in card and "--target" not in card
    assert [need.role for need in facts.needs] == ["encoder"]
