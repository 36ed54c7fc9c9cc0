"""SAM-U as a protocol, and how well probabilities are calibrated."""

import csv
import shlex
from types import SimpleNamespace

import numpy as np
import pytest

from data_prep.common.cli import run_program
from data_prep.common.errors import UserError
from finetune.__main__ import COMMANDS
from finetune.evaluation.calibration import (
    BINS,
    Reliability,
    around,
    count_bins,
    expected_calibration_error,
)
from finetune.evaluation.protocols import Box
from finetune.evaluation.sam_u import SamU
from finetune.inference.prompted import PromptedImage
from helpers.recipes import ROOT, header_of, recipes_of


def literal_error(probability: np.ndarray, truth: np.ndarray) -> float:
    """Pixel by pixel and bin by bin."""
    pairs = list(zip(probability.ravel().tolist(), truth.ravel().tolist(), strict=True))
    error = 0.0
    for number in range(BINS):
        low, high = number / BINS, (number + 1) / BINS
        last = number == BINS - 1
        held = [(p, t) for p, t in pairs if low <= p and (p < high or last)]
        if held:
            mean = sum(p for p, _ in held) / len(held)
            share = sum(t for _, t in held) / len(held)
            error += len(held) / len(pairs) * abs(mean - share)
    return error


def test_the_error_is_the_formula_also_when_counted_in_parts() -> None:
    rng = np.random.default_rng(0)
    probability = rng.random((30, 40))
    probability[0, :3] = 0, 1, 0.5
    truth = rng.random((30, 40)) < probability**2
    expected = literal_error(probability, truth)
    assert expected > 0.1
    assert expected_calibration_error(count_bins(probability, truth)) == pytest.approx(expected)
    parts = count_bins(probability[:7], truth[:7]) + count_bins(probability[7:], truth[7:])
    assert expected_calibration_error(parts) == pytest.approx(expected)
    certain = truth.astype(float)
    assert expected_calibration_error(count_bins(certain, truth)) == 0
    assert expected_calibration_error(count_bins(1 - certain, truth)) == 1


def test_only_pixels_around_the_object_count() -> None:
    truth = np.zeros((50, 60), bool)
    truth[10:20, 2:10] = True
    rows, columns = around(truth)
    assert (rows, columns) == (slice(5, 25), slice(0, 14))
    assert around(np.zeros((5, 5), bool)) is None
    found = Reliability()
    far = np.zeros(truth.shape)
    far[40:] = 1  # wrong, but far away
    far[truth] = 1
    found.add("case", "", "liver", "box", far, truth)
    assert found.bins["liver", "box", "case"][0].sum() == 20 * 14
    assert found.errors()["liver", "box"].mean == 0
    found.add("case", "", "liver", "box", 1 - far, truth)
    assert found.errors()["liver", "box"].mean == pytest.approx(0.5)


def test_its_time_is_that_of_all_its_boxes(discs, organs, monkeypatch) -> None:
    """By a clock that goes on by a second for each run of the decoder."""
    clock = SimpleNamespace(perf_counter=lambda: discs.decoded)
    monkeypatch.setattr("finetune.inference.clock.time", clock)
    sample = organs(1, (50, 70))
    truths = np.stack([sample.mask == 1, sample.mask == 2])
    prompted, rng = PromptedImage(discs, sample.image), np.random.default_rng(0)
    found = SamU(boxes=4).answers(prompted, truths, ["liver", "tumour"], rng)
    assert [each.seconds for each in found["mean of 4 boxes"]] == [4, 4]


def test_without_jitter_it_answers_as_the_box(discs, organs) -> None:
    sample = organs(1, (50, 70))
    truths = np.stack([sample.mask == 1, sample.mask == 2])
    prompted, rng = PromptedImage(discs, sample.image), np.random.default_rng(0)
    plain = Box().answers(prompted, truths, ["liver", "tumour"], rng)["box"]
    found = SamU(boxes=4, jitter=0.0).answers(prompted, truths, ["liver", "tumour"], rng)
    (several,) = found.values()
    for one, other in zip(plain, several, strict=True):
        assert np.array_equal(one.mask, other.mask) and other.prompts == one.prompts == 1
    moved = SamU(boxes=4, jitter=0.3).answers(prompted, truths, ["liver", "tumour"], rng)
    assert not np.array_equal(moved["mean of 4 boxes"][0].probability, several[0].probability)
    for options in ({"boxes": 0}, {"jitter": -0.1}):
        with pytest.raises(UserError, match="must"):
            SamU(**options)


@pytest.mark.parametrize("recipe", recipes_of("configs/evaluate"))
def test_a_recipe_runs_as_its_header_says(
    recipe, discs, organs, make_shards, tmp_path, monkeypatch, capsys
) -> None:
    samples = [organs(seed, (40, 50)) for seed in range(3)]
    make_shards(samples, {"liver": [1], "tumour": [2]}, "shards/hippocampus")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("finetune.evaluation.evaluate.load_model", lambda source, device: discs)
    shown = [line[4:] for line in header_of(recipe).splitlines() if line.startswith("#   ")]
    words = shlex.split(" ".join(shown).replace("\\ ", " "))
    assert words[:6] == ["python", "-m", "finetune", "evaluate", "--config", recipe]
    run_program("finetune", COMMANDS, [*words[3:], "--data.split=train", "--device=cpu"])

    folder = tmp_path / "results" / "sam_u"
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert {row["protocol"] for row in rows} == {"box", "filled box", "mean of 10 boxes"}
    assert {row["prompts"] for row in rows} == {"1"}
    bins = list(csv.DictReader((folder / "calibration.csv").open()))
    assert {row["protocol"] for row in bins} == {"box", "mean of 10 boxes"}
    assert len(bins) == 3 * 2 * 2 * BINS and sum(int(row["pixels"]) for row in bins) > 0
    table = (folder / "calibration.md").read_text()
    assert "mean of 10 boxes" in table and "expected calibration error" in table
    assert table in capsys.readouterr().out
    for name in ("reliability", "best", "median", "worst"):
        assert (folder / "figures" / f"{name}.png").is_file()
