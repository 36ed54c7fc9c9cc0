"""Probes, held-out losses and pictures while a run trains; they leave the run as it is."""

import json
import os
import socket
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import save_file

from data_prep.common.cli import run_command
from data_prep.common.errors import UserError
from data_prep.loader.mixture import ShardMixture
from finetune.train import COMMAND as STAGE_TWO
from pretrain.encoder.pixels import normalise_pixels
from pretrain.encoder.sam import SamEncoder
from pretrain.engine.optim import step_seed
from pretrain.objectives import EMix, MaskedAutoencoding, ShED
from pretrain.objectives.pictures import moved_accuracy, moved_probabilities, similarities
from pretrain.objectives.together import PretrainModel
from pretrain.probes.held_out import HeldOutLoss
from pretrain.sizes import SIZES, EncoderSize
from pretrain.train import COMMAND
from pretrain.transform import PretrainTransform, collate

TINY = EncoderSize(width=32, depth=1, heads=2, global_blocks=(0,))


def run(output, shards, *options):
    words = ["--config=configs/pretrain/quickstart.yaml", "--data.workers=0", "--log_every=1"]
    words += ["--optim.batch_size=4", "--optim.warmup_steps=1", f"--data.shards={shards}"]
    try:
        run_command("pretrain/train.py", COMMAND, [*words, f"--output={output}", *options])
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def metrics(folder, beginning):
    """Rows of metrics.jsonl with a name that begins so, by step."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r for r in rows if any(name.startswith(beginning) for name in r)}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    save_file(SamEncoder(SIZES["vit_t"]).state_dict(), path)
    return path


def test_a_judged_run_trains_as_one_that_is_not(divided, start, tmp_path, read_losses):
    plain, judged = tmp_path / "plain", tmp_path / "judged"
    steps = ("--optim.steps=2", f"--start_from={start}")
    run(plain, divided, *steps)
    run(
        judged,
        divided,
        *steps,
        *("--evaluators.probe=Probe", "--evaluators.probe.every=1"),
        *("--evaluators.probe.max_images=12", "--evaluators.held_out.class_path=HeldOutLoss"),
        *("--evaluators.held_out.every=1", "--evaluators.held_out.batch_size=4"),
        *("--evaluators.figures=Figures", "--evaluators.figures.every=2"),
    )
    named = ("probe/", "held_out/")
    losses = [r for r in read_losses(judged) if not any(k.startswith(named) for k in r)]
    assert losses == read_losses(plain)

    probes = metrics(judged, "probe/")
    assert list(probes) == [1, 2]
    ends = {
        f"{probe}_{metric}"
        for probe in ("knn", "linear")
        for metric in ("accuracy", "balanced_accuracy", "auroc")
    }
    own = {f"probe/divided_{end}" for end in ends}
    others = ("untrained", "start", "thumbnail")
    baselines = {f"probe/divided_{name}_{end}" for name in others for end in ends}
    assert set(probes[1]) == {"step"} | own | baselines  # which come once
    assert set(probes[2]) == {"step"} | own
    held_out = metrics(judged, "held_out/")
    assert list(held_out) == [1, 2]
    assert set(held_out[1]) == {"step", "held_out/mae", "held_out/emix", "held_out/shed"}
    assert held_out[1] | {"step": 0} != held_out[2] | {"step": 0}
    drawn = {path.name for path in (judged / "figures").iterdir()}
    assert drawn == {
        *("losses.png", "reconstructions.png", "mix_similarity.png", "moved_tokens.png"),
        *("probe_bars.png", "rates.png"),
    }


def test_the_latest_pictures_replace_earlier_ones(divided, tmp_path, monkeypatch):
    seen = []
    from pretrain.engine import loop

    def save_figure(figure, path):
        seen.append(path.name)
        path.write_bytes(b"")

    monkeypatch.setattr(loop, "save_figure", save_figure)
    options = ["--evaluators.figures=Figures", "--evaluators.figures.every=1"]
    options += ["--objectives.emix.weight=0", "--objectives.shed.weight=0"]
    run(tmp_path / "run", divided, "--optim.steps=2", *options)
    assert seen == ["reconstructions.png"] * 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("Probe",), "undivided: none of 24 records has a label"),
        (("HeldOutLoss",), "has no split 'test', only train"),
        (("HeldOutLoss", "split=train"), "split 'train' is what the run trains on"),
        (("Prob",), "there is no class 'Prob'; did you mean Probe?"),
        (("Probe", "max_images=0"), "must be at least 1"),
    ],
)
def test_what_cannot_judge_is_refused_before_training(
    options, said, make_set, undivided, tmp_path, capfd
):
    root = undivided
    if "none of" in said:
        root = make_set(tmp_path, "undivided", "--label=")
    name, *more = options
    words = [f"--evaluators.x={name}", *(f"--evaluators.x.{each}" for each in more)]
    words += [f"--evaluators.x.shards=[{root}]"] if "none of" in said else []
    capfd.readouterr()
    with pytest.raises(SystemExit):
        run(tmp_path / "run", root, "--optim.steps=1", *words)
    assert said in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_stage_two_has_nothing_for_them_to_judge(labelled_shards, tmp_path, capfd):
    words = ["--config=configs/finetune/quickstart.yaml", f"--data.shards={labelled_shards}"]
    words += [f"--output={tmp_path / 'run'}", "--model.image_size=64"]
    words += ["--evaluators.x=pretrain.probes.scheduled.Probe"]
    try:
        with pytest.raises(SystemExit):
            run_command("finetune/train.py", STAGE_TWO, words)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert "Probe judges stage one only" in capfd.readouterr().err


def stage(root):
    """What of stage one a held-out loss looks at; e-Mix gathers negatives over processes."""
    torch.manual_seed(0)
    objectives = {
        "mae": MaskedAutoencoding(32, decoder_width=16, decoder_heads=2, decoder_depth=1),
        "emix": EMix(32, gather_negatives=True),
        "shed": ShED(32),
    }
    config = SimpleNamespace(data=SimpleNamespace(shards=str(root), split="train"))
    dataset = ShardMixture([root], transform=PretrainTransform(224, 0.5))
    encoder = SamEncoder(TINY)
    model = PretrainModel(encoder, objectives).eval()
    return SimpleNamespace(config=config, dataset=dataset, encoder=encoder, model=model)


def held_out(root, accelerator):
    evaluator = HeldOutLoss(split="test", max_images=7, batch_size=2)
    judged = stage(root)
    evaluator.prepare(judged, accelerator)
    torch.manual_seed(accelerator.process_index)  # of which nothing may depend
    with torch.no_grad():
        return evaluator.evaluate(judged, accelerator).numbers


def _held_out(rank, port, root, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    numbers = held_out(root, Accelerator(cpu=True))
    with open(f"{folder}/{rank}.json", "w") as file:  # noqa: PTH123
        json.dump(numbers, file)


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_held_out_losses_do_not_depend_on_the_number_of_processes(divided, tmp_path, accelerator):
    """Of three batches one process has two, so that gathering would leave it waiting."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_held_out, args=(port, str(divided), str(tmp_path)), nprocs=2)
    one = held_out(divided, accelerator)
    assert set(one) == {"mae", "emix", "shed"} and one == held_out(divided, accelerator)
    for rank in range(2):
        two = json.loads((tmp_path / f"{rank}.json").read_text())
        assert two == pytest.approx(one, rel=1e-5)


def test_held_out_losses_are_means_over_fixed_batches(divided, accelerator):
    judged = stage(divided)
    evaluator = HeldOutLoss(max_images=5, batch_size=2)
    evaluator.prepare(judged, accelerator)
    chosen = [index for batch in evaluator.batches for index in batch]
    assert len(evaluator.batches) == 2 and len(set(chosen)) == 4
    with torch.no_grad():
        numbers = evaluator.evaluate(judged, accelerator).numbers
        losses = []
        for number, batch in enumerate(evaluator.batches):
            samples = [evaluator.images[index, index] for index in batch]
            images = normalise_pixels(collate(samples).images)
            generator = torch.Generator().manual_seed(step_seed(0, number, 0, 0))
            losses.append(float(judged.model(images, generator, collate(samples).groups)["mae"]))
    assert numbers["mae"] == pytest.approx(sum(losses) / 2)
    assert not any(objective.alone for objective in judged.model.objectives.values())
    with pytest.raises(UserError, match="must be at least 2"):
        HeldOutLoss(batch_size=1)


def test_similarities_are_those_that_the_loss_contrasts():
    torch.manual_seed(0)
    encoder, objective = SamEncoder(TINY), EMix(32, keep_ratio=0.5)
    images = torch.randn(4, 3, 224, 224)
    found, shares = similarities(encoder, objective, images, seed=3)
    assert shares.sum(1).tolist() == pytest.approx([1] * 4)
    assert (shares.diagonal() >= 0.5).all()
    loss = PretrainModel(encoder, {"emix": objective})(images, torch.Generator().manual_seed(3))
    logs = (found / objective.temperature).log_softmax(1)
    assert float(-(shares * logs).sum(1).mean().detach()) == pytest.approx(
        float(loss["emix"].detach()), rel=1e-5
    )


@pytest.mark.parametrize("keep_ratio", [0.25, 1.0])
def test_moved_probabilities_are_those_that_the_loss_scores(keep_ratio):
    torch.manual_seed(0)
    encoder, objective = SamEncoder(TINY), ShED(32, keep_ratio=keep_ratio)
    images = torch.randn(2, 3, 224, 224)
    probability, moved = moved_probabilities(encoder, objective, images, seed=3)
    seen = ~probability.isnan()
    assert seen.sum(1).tolist() == [int(196 * keep_ratio)] * 2
    assert not (moved & ~seen).any()
    loss = PretrainModel(encoder, {"shed": objective})(images, torch.Generator().manual_seed(3))
    right = torch.where(moved, probability, 1 - probability)[seen]
    assert float(-right.log().mean()) == pytest.approx(float(loss["shed"].detach()), rel=1e-4)


def test_accuracy_of_moved_tokens_counts_seen_ones_only():
    probability = torch.tensor([[0.9, 0.2, np.nan, 0.4], [0.6, 0.1, 0.3, np.nan]])
    moved = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0]]).bool()
    assert moved_accuracy(probability, moved) == pytest.approx((4 / 6, 1 / 2, 3 / 4))
