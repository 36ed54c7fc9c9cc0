"""Evaluation: protocols against literal loops over single objects, tables, and the command."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from data_prep.common.cli import run_program
from data_prep.common.errors import UserError
from data_prep.loader.dataset import ShardDataset
from finetune.__main__ import COMMANDS
from finetune.config import CaseSelection, EvaluateConfig, HeldOut
from finetune.data.cases import LabelledCases
from finetune.evaluation import metrics
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.protocols import Box, Clicks, JitteredBox
from finetune.inference.loading import find_device, load_segmenter
from finetune.inference.prompted import PromptedImage
from finetune.model.prompt_encoder import Prompts
from finetune.model.segmenter import Decoded
from finetune.prompts.boxes import box_of
from finetune.prompts.clicks import evaluation_click
from pretrain.encoder.geometry import Resize
from pretrain.encoder.pixels import as_pixels, normalise_pixels

LABELS = {"liver": [1], "tumour": [2], "both": [1, 2]}


def literal_clicks(discs, image, target, clicks: int, previous_mask: bool) -> list:
    """One object by itself: predictions (H, W) after 1, 2, ... clicks, with points and labels."""
    resize = Resize(image.shape[:2], 64)
    pixels, valid = resize.image(as_pixels(image)), resize.valid()
    embedding = discs.encode(normalise_pixels(pixels[None], valid[None]))
    prediction = np.zeros(target.shape, bool)
    points, labels, previous, steps = [], [], None, []
    for _ in range(clicks):
        click = evaluation_click(prediction, target, np.array(points, int).reshape(-1, 2))
        if click is None:
            break
        points.append(click[0])
        labels.append(click[1])
        prompts = Prompts(
            torch.tensor([0]),
            torch.tensor(resize.points(points))[None],
            torch.tensor(labels)[None],
            masks=previous if previous_mask else None,
        )
        previous = discs.decode(embedding, prompts).low_res
        prediction = resize.restore(previous[0, 0].numpy()) > 0
        steps.append((np.array(points), np.array(labels), prediction))
    return steps


@pytest.mark.parametrize("shape", [(50, 70), (90, 40), (64, 64)])
@pytest.mark.parametrize("previous_mask", [True, False])
def test_click_by_click_is_each_object_by_itself(discs, organs, shape, previous_mask):
    sample = organs(1, shape)
    targets = np.stack([np.isin(sample.mask, values) for values in LABELS.values()])
    discs.previous_mask = previous_mask
    together = PromptedImage(discs, sample.image).click_by_click(targets, 6)
    assert discs.encoded == 1 and discs.decoded == 6
    for target, steps in zip(targets, together, strict=True):
        alone = literal_clicks(discs, sample.image, target, 6, previous_mask)
        assert len(alone) == len(steps) == 6
        for (points, labels, prediction), step in zip(alone, steps, strict=True):
            assert np.array_equal(step.points, points)
            assert np.array_equal(step.labels, labels)
            assert np.array_equal(step.mask, prediction)
    assert {0, 1} == set(together[0][-1].labels) | set(together[1][-1].labels)


class Stripes(nn.Module):
    """Knows three stripes of a 64 x 64 image, and predicts each rightly after its own number of
    clicks; checks that each prompt brings the logits last predicted for the same stripe."""

    image_size = 64
    previous_mask, multimask = True, False
    right_after = (2, 4, 1)

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.last: list[Tensor | None] = [None, None, None]
        self.asked: list[list[int]] = []

    @staticmethod
    def truth() -> np.ndarray:
        masks = np.zeros((3, 64, 64), bool)
        for number in range(3):
            masks[number, 20 * number : 20 * number + 16] = True
        return masks

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, embeddings: Tensor, prompts: Prompts, multimask: bool = False) -> Decoded:
        low_res, asked = [], []
        for place in range(len(prompts)):
            number = int(prompts.points[place, 0, 1]) // 20
            asked.append(number)
            if self.last[number] is not None:
                assert torch.equal(prompts.masks[place], self.last[number])
            clicks = prompts.points.shape[1]
            shift = 0 if clicks >= self.right_after[number] else 1
            logits = torch.full((1, 16, 16), -1.0 - clicks)
            logits[:, 5 * number + shift : 5 * number + 4] = 1.0 + clicks
            self.last[number] = logits
            low_res.append(logits)
        self.asked.append(asked)
        return Decoded(torch.stack(low_res), torch.zeros(len(low_res), 1))


def test_an_object_without_error_takes_no_more_clicks():
    stripes = Stripes()
    image = PromptedImage(stripes, np.zeros((64, 64), np.uint8))
    steps = image.click_by_click(stripes.truth(), 10)
    assert [len(answers) for answers in steps] == [2, 4, 1]
    assert stripes.asked == [[0, 1, 2], [0, 1], [1], [1]]
    for answers, truth in zip(steps, stripes.truth(), strict=True):
        assert np.array_equal(answers[-1].mask, truth)
        assert all(not np.array_equal(step.mask, truth) for step in answers[:-1])


def expected_row(cases: LabelledCases, record: int, target: str, predict) -> tuple:
    """Dice, IoU, HD95 and NSD of a record, each slice that holds the target predicted by itself."""
    stored = cases.shards.record(record)
    truth = np.isin(stored.mask, cases.targets[target])
    flat = truth.ndim == 2
    images, truths = (stored.image[None], truth[None]) if flat else (stored.image, truth)
    prediction = np.zeros_like(truths)
    for depth in np.flatnonzero(truths.any((1, 2))):
        prediction[depth] = predict(images[depth], truths[depth])
    if flat:
        prediction = prediction[0]
    spacing = stored.meta["spacing"]
    return (
        metrics.dice(prediction, truth),
        metrics.iou(prediction, truth),
        metrics.hd95(prediction, truth, spacing),
        metrics.nsd(prediction, truth, spacing, 2.0),
    )


@pytest.mark.parametrize("depth", [None, 6])
def test_rows_are_those_of_a_literal_loop(make_shards, organs, discs, depth):
    shards = make_shards([organs(0, depth=depth), organs(1, depth=depth)], LABELS)
    cases = LabelledCases(CaseSelection(shards=shards))
    rows = evaluate(discs, cases, [Clicks((1, 4)), Box()], tolerance=2.0)
    assert discs.encoded == len(cases.images)
    assert discs.decoded == 5 * len(cases.images)  # 4 clicks and the boxes, all targets at once

    def by_clicks(number: int):
        return lambda image, truth: literal_clicks(discs, image, truth, number, True)[-1][2]

    def by_box(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
        return PromptedImage(discs, image).predict(boxes=box_of(truth)[None])[0][0]

    def by_filling(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
        x0, y0, x1, y1 = box_of(truth).astype(int)
        filled = np.zeros_like(truth)
        filled[y0:y1, x0:x1] = True
        return filled

    predictors = {"1 click": by_clicks(1), "4 clicks": by_clicks(4), "box": by_box}
    predictors["filled box"] = by_filling
    prompts = {"1 click": 1, "4 clicks": 4, "box": 1, "filled box": 1}
    # who prompts each slice that holds the target knows where it ends
    ending = "" if depth is None else " per slice"
    found = {(row.case, row.target, row.protocol): row for row in rows}
    assert len(found) == len(rows) == 2 * 3 * 4
    for record in range(2):
        key = cases.shards.record(record).key
        for target in LABELS:
            for protocol, predict in predictors.items():
                row = found[key, target, protocol + ending]
                held = np.isin(cases.shards.record(record).mask, LABELS[target])
                slices = 1 if depth is None else int(held.any((1, 2)).sum())
                assert row.prompts == prompts[protocol] * slices
                expected = expected_row(cases, record, target, predict)
                assert (row.dice, row.iou, row.hd95, row.nsd) == pytest.approx(expected)
                assert row.unit == "mm" and 0 < row.dice < 1


def test_without_spacing_distances_are_in_pixels(make_shards, organs, discs):
    sample = organs(0)
    sample.meta["spacing"] = None
    cases = LabelledCases(CaseSelection(shards=make_shards([sample], LABELS)))
    rows = evaluate(discs, cases, [Clicks((1,))])
    for row, values in zip(rows, LABELS.values(), strict=True):
        truth = np.isin(sample.mask, values)
        prediction = literal_clicks(discs, sample.image, truth, 1, True)[0][2]
        assert (row.unit, row.hd95) == ("px", metrics.hd95(prediction, truth, (1, 1)))


def test_jittered_boxes_depend_on_the_seed_alone(make_shards, organs, discs):
    shards = make_shards([organs(0), organs(1)], LABELS)
    everything = LabelledCases(CaseSelection(shards=shards))
    one = LabelledCases(CaseSelection(shards=shards, cases=1))

    def boxes(cases: LabelledCases, seed: int) -> dict:
        found = evaluate(discs, cases, [JitteredBox()], seed=seed)
        return {(row.case, row.target): row for row in found}

    rows = boxes(everything, 0)
    assert boxes(one, 0).items() < rows.items()
    assert boxes(everything, 1) != rows
    exact = evaluate(discs, everything, [Box()])
    boxes_alone = [row.iou for row in exact if row.protocol == "box"]
    assert boxes_alone != [row.iou for row in rows.values()]


def test_the_command_writes_tables_and_figures(make_shards, organs, run_folder, tmp_path):
    shards = make_shards([organs(0), organs(1), organs(2)], LABELS)
    output = tmp_path / "evaluation"
    arguments = [f"--run={run_folder}", f"--data.shards={shards}", "--data.split=train"]
    arguments += [f"--output={output}", "--device=cpu"]
    arguments.append("--protocols=[{class_path: Clicks, numbers: [1, 2]}, Box, JitteredBox]")
    run_program("finetune", COMMANDS, ["evaluate", *arguments])
    rows = list(csv.DictReader((output / "results.csv").read_text().splitlines()))
    assert len(rows) == 3 * 3 * 5
    keys = {ShardDataset(shards).record(index).key for index in range(3)}
    assert {line["case"] for line in rows} == keys
    assert len({line["group"] for line in rows}) == 3
    summaries = list(csv.DictReader((output / "summary.csv").read_text().splitlines()))
    assert len(summaries) == 4 * 5
    assert (output / "summary.md").read_text().count("\n| ") == 4 * 5
    assert "numbers:\n    - 1\n    - 2\n" in (output / "config.yaml").read_text()
    for name in ("dice_by_clicks", "best", "median", "worst"):
        assert (output / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit) as stop:
        run_program("finetune", COMMANDS, ["evaluate", *arguments])
    assert stop.value.code == 2


def test_protocols_that_ask_nothing_are_refused(make_shards, organs, run_folder, tmp_path, capsys):
    shards, output = make_shards([organs(0)], LABELS), tmp_path / "evaluation"
    arguments = [f"--run={run_folder}", f"--data.shards={shards}", "--data.split=train"]
    arguments += [f"--output={output}", "--device=cpu", "--protocols=[Propagated]"]
    with pytest.raises(SystemExit) as stop:
        run_program("finetune", COMMANDS, ["evaluate", *arguments])
    assert stop.value.code == 2 and not output.exists()
    assert "nothing to ask about these cases; Propagated is for" in capsys.readouterr().err


def test_the_command_scores_by_monai_and_lists_targets_without_a_case(
    make_shards, organs, run_folder, tmp_path, capsys
):
    sample = organs(0)
    sample.mask[sample.mask == 2] = 0
    shards = make_shards([sample], LABELS)
    arguments = [f"--run={run_folder}", f"--data.shards={shards}", "--data.split=train"]
    arguments += ["--protocols=[Box]", "--device=cpu"]
    found = {}
    for name in ("surface", "monai"):
        output = tmp_path / name
        options = [*arguments, f"--output={output}", f"--hd95={name}"]
        run_program("finetune", COMMANDS, ["evaluate", *options])
        found[name] = list(csv.DictReader((output / "results.csv").read_text().splitlines()))
        assert {row["hd95_definition"] for row in found[name]} == {name}
        table = (output / "summary.md").read_text()
        assert table in capsys.readouterr().out
        assert ("as MONAI" in table) == (name == "monai")
        assert "| tumour | box | - | 0 | 0 | - | - | - | - | - |" in table
        lines = list(csv.DictReader((output / "summary.csv").read_text().splitlines()))
        assert {line["target"]: line["cases"] for line in lines}["tumour"] == "0"
    for column in ("dice", "nsd"):
        assert found["surface"][0][column] == found["monai"][0][column]
    assert found["surface"][0]["hd95"] != found["monai"][0]["hd95"]
    results = f"--results=[{tmp_path / 'surface'}, {tmp_path / 'monai'}]"
    with pytest.raises(SystemExit):
        run_program("finetune", COMMANDS, ["compare", results])
    assert "evaluate both with the same --hd95" in capsys.readouterr().err


def test_a_run_comes_back_from_its_newest_checkpoint(run_folder):
    segmenter = load_segmenter(run_folder, torch.device("cpu"))
    assert not segmenter.training and segmenter.image_size == 64 and segmenter.previous_mask
    newest = load_file(run_folder / "checkpoints" / "step-00000002" / "segmenter.safetensors")
    older = load_file(run_folder / "checkpoints" / "step-00000001" / "segmenter.safetensors")
    state = segmenter.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in newest.items())
    assert any(not torch.equal(state[name], tensor) for name, tensor in older.items())
    assert any(".adapter." in name for name in newest)


def test_a_run_of_an_earlier_version_comes_back(run_folder):
    """Its config.yaml lacks options that were added since, and names one as it was named then."""
    expected = load_segmenter(run_folder, torch.device("cpu")).state_dict()
    path = run_folder / "config.yaml"
    values = yaml.safe_load(path.read_text())
    for name in ("evaluators", "loss"):
        del values[name]
    del values["model"]["decoder"]
    values["model"]["encoder"] = values["model"].pop("encoder_size")
    path.write_text(yaml.safe_dump(values))
    state = load_segmenter(run_folder, torch.device("cpu")).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    values["model"]["depth_adapter"] = "some.Adapter"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"config\.yaml: .*model\.depth_adapter"):
        load_segmenter(run_folder, torch.device("cpu"))


def test_a_run_that_cannot_come_back_says_why(run_folder, tmp_path):
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match=r"has no config\.yaml"):
        load_segmenter(tmp_path / "nowhere", cpu)
    text = (run_folder / "config.yaml").read_text()
    gone = tmp_path / "gone.safetensors"
    (run_folder / "config.yaml").write_text(text.replace("encoder: null", f"encoder: {gone}"))
    with pytest.raises(UserError, match=r"the weights that .* was trained on: .*gone"):
        load_segmenter(run_folder, cpu)
    values = yaml.safe_load(text)
    values["model"]["text"] = {"class_path": "finetune.prompts.text.ClipText"}
    values["model"]["text"]["init_args"] = {"pretrained": str(gone)}
    (run_folder / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"trained on: model\.text.*gone.*; of encoder and SAM say"):
        load_segmenter(run_folder, cpu)
    (run_folder / "config.yaml").write_text(text)
    for checkpoint in (run_folder / "checkpoints").iterdir():
        (checkpoint / "segmenter.safetensors").unlink()
    with pytest.raises(UserError, match="has no checkpoint"):
        load_segmenter(run_folder, cpu)


def test_unusable_options_are_refused():
    options = {"run": Path("run"), "data": HeldOut(shards=Path("set")), "output": Path("out")}
    with pytest.raises(UserError, match=r"Clicks\.numbers \[0, 3\]"):
        Clicks((0, 3))
    with pytest.raises(UserError, match="protocols: the list is empty"):
        EvaluateConfig(**options, protocols=[])
    with pytest.raises(UserError, match="tolerance is -1"):
        EvaluateConfig(**options, tolerance=-1)
    for name in ("abacus", "cuda:99"):
        with pytest.raises(UserError, match=f"device: '{name}'"):
            find_device(name)
    assert find_device("cpu") == torch.device("cpu")
