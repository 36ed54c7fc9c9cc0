"""The best checkpoint by patients that are not trained on, whatever befalls the run."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState

from data_prep.common.cli import run_command
from data_prep.common.errors import UserError
from data_prep.common.parsing import parse
from finetune.config import SegmentationDataConfig, TrainConfig
from finetune.data.cases import LabelledCases, Part
from finetune.inference.loading import SEGMENTER, load_segmenter
from finetune.stage import SegmentationStage
from finetune.train import COMMAND
from finetune.validation import SCORE, Validation
from pretrain.engine.checkpoint import best_checkpoint, latest_checkpoint

VALIDATION = "{class_path: finetune.validation.Validation, every: 2, clicks: [1, 2]}"
VALIDATED = ("--data.validation=0.25", f"--evaluators={{validation: {VALIDATION}}}")


def groups_of(cases: LabelledCases) -> set[str]:
    return {cases.shards.meta(image.record)["group"] for image in cases.images}


def test_groups_are_trained_on_or_judged(labelled_shards):
    for cases, numbers in {None: (12, 4), 10: (8, 2), 6: (4, 2)}.items():
        config = SegmentationDataConfig(shards=labelled_shards, cases=cases, validation=0.25)
        trained = groups_of(LabelledCases(config, 3, Part(0.25, False)))
        judged = groups_of(LabelledCases(config, 3, Part(0.25, True)))
        assert (len(trained), len(judged)) == numbers and not trained & judged
        assert trained | judged == groups_of(LabelledCases(config, 3))
    one = SegmentationDataConfig(shards=labelled_shards, cases=1, validation=0.25)
    assert len(groups_of(LabelledCases(one, 3, Part(0.25, False)))) == 1
    assert not LabelledCases(one, 3, Part(0.25, True)).images
    with pytest.raises(UserError, match=r"data\.validation is 0\.6, which leaves no group of 1"):
        LabelledCases(one, 3, Part(0.6, False))


def train(run: Path, shards: Path, *options: str) -> list[dict[str, float]]:
    small = ["--config=configs/finetune/quickstart.yaml", "--optim.batch_size=2"]
    small += ["--optim.warmup_steps=0", "--data.workers=0", "--model.image_size=64"]
    small += [f"--data.shards={shards}", f"--output={run}", "--log_every=1", "--save_every=1"]
    run_command("finetune/train.py", COMMAND, [*small, *options])
    AcceleratorState._reset_state(reset_partial_state=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if f"validation/{SCORE}" in row]


def test_a_run_keeps_its_best_and_training_is_as_without(
    shallow, labelled_shards, tmp_path, capsys
):
    run = tmp_path / "run"
    rows = train(run, labelled_shards, *VALIDATED, "--optim.steps=4")
    assert [row["step"] for row in rows] == [2, 4]
    names = {"validation/1_click", "validation/2_clicks", "validation/box"}
    for row in rows:
        assert names < set(row)
        mean = sum(row[name] for name in names) / 3
        assert row[f"validation/{SCORE}"] == pytest.approx(mean)
    scores = {row["step"]: row[f"validation/{SCORE}"] for row in rows}
    best = best_checkpoint(run)
    winner = max(scores, key=lambda step: (scores[step], -step))
    assert best.folder.name == f"step-{winner:08d}" and best.document(SCORE) == scores[winner]
    assert not best.fault() and not (best.folder / "optimizer.pt").exists()

    # of several checkpoints the best is used, or the last
    other = next(step for step in scores if step != winner)
    state = load_segmenter(run, torch.device("cpu")).state_dict()
    weights = best.weights(SEGMENTER)
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())
    last = load_segmenter(run, torch.device("cpu"), last=True).state_dict()
    weights = latest_checkpoint(run).weights(SEGMENTER)
    assert all(torch.equal(last[name], tensor) for name, tensor in weights.items())
    assert other in scores

    no_judge = "no evaluator judges them"
    assert no_judge not in capsys.readouterr().out
    plain = tmp_path / "plain"
    train(plain, labelled_shards, "--data.validation=0.25", "--optim.steps=4")
    unjudged = latest_checkpoint(plain).weights(SEGMENTER)
    assert all(torch.equal(unjudged[name], tensor) for name, tensor in weights.items())
    assert best_checkpoint(plain) is None
    assert no_judge in capsys.readouterr().out


def test_processes_share_the_images_and_agree(shallow, labelled_shards, tmp_path, monkeypatch):
    """With prompts that draw at random, too; what one process judges alone is the same."""
    words = ["--config=configs/finetune/quickstart.yaml", "--model.image_size=64", "--threads=1"]
    words += [f"--data.shards={labelled_shards}", f"--output={tmp_path / 'run'}", *VALIDATED[:1]]
    torch.manual_seed(0)
    stage = SegmentationStage(parse(TrainConfig, "train", words)[0], torch.device("cpu"))
    monkeypatch.setattr("finetune.validation.on_rank_0", lambda accelerator, action: None)
    seen: dict[int, list] = {}

    def judged(rank: int, processes: int, others: list) -> dict[str, float]:
        monkeypatch.setattr(
            "finetune.validation.gather_object",
            lambda found: [*seen.setdefault(rank, found), *others],
        )
        accelerator = SimpleNamespace(
            process_index=rank, num_processes=processes, autocast=nullcontext, print=print
        )
        validation = Validation(clicks=(1, 2))
        validation.prepare(stage, accelerator)
        return validation.evaluate(stage, accelerator).numbers

    judged(1, 2, [])
    shared = judged(0, 2, seen[1])
    places = {rank: {place for place, *_ in found} for rank, found in seen.items()}
    assert places[0] and places[1] and not places[0] & places[1]
    seen.clear()
    assert judged(0, 1, []) == shared


def test_a_better_score_replaces_and_steps_that_are_repeated_do_not_count(tmp_path):
    judge = Validation()

    def keep(step: int, score: float) -> tuple[int, float]:
        stage = SimpleNamespace(
            options=SimpleNamespace(output=tmp_path),
            weights=lambda: {SEGMENTER: {"step": torch.tensor(float(step))}},
            documents=dict,
        )
        judge.step = step
        judge._keep(stage, score)
        best = best_checkpoint(tmp_path)
        assert [path.name for path in (tmp_path / "best").iterdir()] == [best.folder.name]
        return int(best.weights(SEGMENTER)["step"]), best.document(SCORE)

    assert keep(2, 0.5) == (2, 0.5)
    assert keep(4, 0.4) == (2, 0.5)
    assert keep(6, 0.7) == (6, 0.7)
    assert keep(6, 0.7) == (6, 0.7)  # judged again after a resume
    assert keep(4, 0.3) == (4, 0.3)  # a run that went on from before, with other options


def test_what_cannot_be_judged_is_refused(labelled_shards, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(tmp_path / "run", labelled_shards, VALIDATED[1], "--optim.steps=1")
    assert "Validation needs groups; set data.validation" in capsys.readouterr().err
    AcceleratorState._reset_state(reset_partial_state=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="Validation has no prompts; give clicks, box or bank"):
        Validation(clicks=(), box=False)


def test_too_few_groups_are_trained_on_without_validation(
    shallow, labelled_shards, tmp_path, capsys
):
    rows = train(tmp_path, labelled_shards, *VALIDATED, "--data.cases=1", "--optim.steps=2")
    assert not rows and "no validation, and no best checkpoint" in capsys.readouterr().out
    assert best_checkpoint(tmp_path) is None and latest_checkpoint(tmp_path) is not None
