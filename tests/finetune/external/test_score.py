"""Masks of another program: scored by the metrics of `evaluate`, or refused in one line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.common.cli import run_program
from data_prep.loader.dataset import ShardDataset
from finetune.__main__ import COMMANDS
from finetune.evaluation import metrics
from finetune.evaluation.comparison.results import read_results
from finetune.external.files import write_labels

LABELS = {"liver": [1], "tumour": [2], "both": [1, 2]}


def score(shards: Path, masks: Path, output: Path, *options: str) -> None:
    words = [f"--data.shards={shards}", f"--masks={masks}", f"--output={output}", *options]
    run_program("python -m finetune", COMMANDS, ["score", *words])


@pytest.fixture
def shards(make_split, organs) -> Path:
    """Three pictures to train on and three to test, of which one holds no tumour."""
    samples = [organs(seed, (30, 40)) for seed in range(6)]
    samples[5].mask[samples[5].mask == 2] = 0
    return make_split(samples, LABELS, test=3)


def moved(shards: Path, folder: Path) -> dict[str, np.ndarray]:
    """Write masks that are the truth a pixel to the right; the prediction of each case."""
    folder.mkdir()
    dataset, found = ShardDataset(shards, "test"), {}
    for index in range(len(dataset)):
        record = dataset.record(index)
        found[record.key] = np.roll(record.mask, 1, axis=1)
        write_labels(found[record.key], record, folder)
    return found


def test_rows_are_the_metrics_of_each_target(shards, tmp_path, capsys) -> None:
    predictions = moved(shards, tmp_path / "masks")
    score(shards, tmp_path / "masks", tmp_path / "results")
    assert capsys.readouterr().out == (tmp_path / "results/summary.md").read_text()
    rows = read_results(tmp_path / "results" / "results.csv")
    assert len(rows) == 9
    dataset = ShardDataset(shards, "test")
    truths = {dataset.key(n): dataset.record(n) for n in range(len(dataset))}
    for row in rows:
        record, values = truths[row.case], LABELS[row.target]
        truth, mask = (np.isin(each, values) for each in (record.mask, predictions[row.case]))
        assert row.protocol == ("no prompt" if truth.any() else "no prompt, absent")
        assert row.dice == metrics.dice(mask, truth) and row.iou == metrics.iou(mask, truth)
        assert row.nsd == metrics.nsd(mask, truth, [0.5, 0.8], 1.0)
        assert row.group == record.meta["group"] and (row.unit, row.prompts) == ("mm", 0)
        if truth.any():
            assert 0.5 < row.dice < 1
            assert row.hd95 == metrics.hd95(mask, truth, [0.5, 0.8])
    assert sum(row.protocol.endswith("absent") and row.dice == 1 for row in rows) == 1
    figures = {path.name for path in (tmp_path / "results" / "figures").iterdir()}
    assert figures == {"best.png", "median.png", "worst.png"}
    # such results are compared as any others
    score(shards, tmp_path / "masks", tmp_path / "again", "--hd95=surface")
    both = f"--results=[{tmp_path / 'results'}, {tmp_path / 'again'}]"
    words = ["compare", both, f"--output={tmp_path / 'comparison'}"]
    run_program("python -m finetune", COMMANDS, words)
    printed = capsys.readouterr()
    assert "+0.000" in printed.out
    assert printed.err.splitlines()[-1] == (
        "warning: results, again: masks of another program, whose parameters, times and pictures"
        " are not known."
    )


def test_values_of_the_masks_may_be_others(shards, tmp_path) -> None:
    (tmp_path / "masks").mkdir()
    dataset = ShardDataset(shards, "test")
    for index in range(len(dataset)):
        record = dataset.record(index)
        Image.fromarray((record.mask > 0).astype(np.uint8) * 255).save(
            tmp_path / "masks" / f"{record.key}.png"
        )
    given = ("--data.targets=both", "--values={both: [255]}")
    score(shards, tmp_path / "masks", tmp_path / "results", *given)
    rows = read_results(tmp_path / "results" / "results.csv")
    assert [(row.target, row.dice) for row in rows] == [("both", 1.0)] * 3


def test_a_mask_that_cannot_be_used_is_one_line_and_leaves_nothing(
    shards, tmp_path, capsys
) -> None:
    moved(shards, masks := tmp_path / "masks")
    path = sorted(masks.iterdir())[0]
    whole = path.read_bytes()

    def refused(message: str, *options: str) -> None:
        with pytest.raises(SystemExit):
            score(shards, masks, tmp_path / "results", *options)
        assert message in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "results").exists()

    Image.fromarray(np.full((30, 40), 7, np.uint8)).save(path)
    refused(f"{path}: has the value 7, which is no target's (liver [1], tumour [2], both [1, 2])")
    Image.fromarray(np.zeros((30, 41), np.uint8)).save(path)
    refused("is 30 x 41 pixels, and its case 30 x 40")
    path.unlink()
    refused(f"lacks masks of 1 of 3 cases, such as {path.name}")
    path.write_bytes(whole)
    refused("there is no target 'lever', only liver", "--values={lever: [1]}")
    refused("none is given for tumour", "--values={liver: [1]}")
    refused("values: those of liver are [0]", "--values={liver: [0]}")
    masks.rename(tmp_path / "elsewhere")
    refused(f"masks: {masks} is not a folder")
