"""What evaluate keeps for compare: Dice after each click, times, parameters and small pictures."""

import csv
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_prep.common.cli import run_program
from data_prep.common.errors import UserError
from finetune.__main__ import COMMANDS
from finetune.config import CaseSelection
from finetune.data.cases import LabelledCases
from finetune.evaluation import metrics
from finetune.evaluation.details import Details
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.protocols import Box, Clicks, Propagated, Protocol
from finetune.evaluation.rough import RoughMask
from finetune.evaluation.tables import results_csv
from finetune.evaluation.thumbnails import (
    Thumbnail,
    Thumbnails,
    ThumbnailWriter,
    reduce_image,
    reduce_mask,
)
from finetune.inference.loading import load_segmenter
from finetune.inference.prompted import Answer, PromptedImage

LABELS = {"liver": [1], "tumour": [2]}


@pytest.fixture
def ticks(monkeypatch) -> None:
    """A clock by which every call of the model takes one second."""
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr("finetune.inference.clock.time", clock)


@pytest.mark.parametrize("depth", [None, 5])
def test_dice_after_each_click_is_kept_and_the_rows_stay(make_shards, organs, discs, depth):
    cases = LabelledCases(CaseSelection(shards=make_shards([organs(0, depth=depth)], LABELS)))
    details, protocols = Details(), [Clicks((1, 4)), Box()]
    rows = evaluate(discs, cases, protocols, details=details)
    assert results_csv(rows) == results_csv(evaluate(discs, cases, protocols))
    assert len(rows) == 2 * 4 and len(details.clicks) == 2 * 4 and not details.thumbnails
    stored = cases.shards.record(0)
    slices, labels = (
        np.reshape(each, (-1, *each.shape[-2:])) for each in (stored.image, stored.mask)
    )
    for each in details.clicks:
        assert (each.case, each.group) == (stored.key, rows[0].group)
        truth = np.isin(labels, LABELS[each.target])
        found = np.zeros_like(truth)
        for place in np.flatnonzero(truth.any((1, 2))):
            (steps,) = PromptedImage(discs, slices[place]).click_by_click(truth[place, None], 4)
            found[place] = steps[min(each.clicks, len(steps)) - 1].mask
        assert each.dice == metrics.dice(found, truth)
        ending = "" if depth is None else " per slice"
        assert each.protocol == f"{each.clicks} click{'s' * (each.clicks > 1)}{ending}"


@pytest.mark.parametrize("numbers", [((1,), (3,)), ((3,), (1,))])
def test_two_users_who_click_share_what_is_between(make_shards, organs, discs, numbers):
    cases = LabelledCases(CaseSelection(shards=make_shards([organs(0)], LABELS)))
    details, protocols = Details(), [Clicks(each) for each in numbers]
    rows = evaluate(discs, cases, protocols, details=details)
    assert {row.protocol for row in rows} == {"1 click", "3 clicks"} and len(rows) == 2 * 2
    assert sorted(each.clicks for each in details.clicks) == [1, 1, 2, 2, 3, 3]
    assert {each.protocol for each in details.seconds} == {"1 click", "3 clicks"}
    for again in (Details(), None):
        with pytest.raises(UserError, match="two of them give the row '1 click'"):
            evaluate(discs, cases, [*protocols, Clicks((1,))], details=again)


def seconds(details: Details) -> dict[str, float]:
    """Of the case, by protocol."""
    found: dict[str, float] = {}
    for each in details.seconds:
        found[each.protocol] = found.get(each.protocol, 0) + each.seconds
    return found


def test_a_case_takes_its_encoding_and_its_passes(make_shards, organs, discs, ticks):
    cases = LabelledCases(CaseSelection(shards=make_shards([organs(0)], LABELS)))
    details = Details()
    evaluate(discs, cases, [Clicks((1, 3)), Box(), RoughMask()], details=details)
    assert seconds(details) == {
        "1 click": 1 + 1,
        "3 clicks": 1 + 3,  # one encoding whatever was asked before, all targets at once
        "box": 1 + 1,
        "filled box": 0,
        "rough mask": 1 + 1,
        "rough mask as it is": 0,
    }
    assert len({each.target for each in details.seconds}) == 2


def test_a_volume_takes_the_sum_of_its_slices(make_shards, organs, discs, ticks):
    cases = LabelledCases(CaseSelection(shards=make_shards([organs(0, depth=5)], LABELS)))
    details = Details()
    evaluate(discs, cases, [Clicks((2,)), Propagated((1,))], details=details)
    found = seconds(details)
    assert found["2 clicks per slice"] == (1 + 2) * len(cases.images)
    assert "1 click per slice" not in found
    by_box = found["box in one slice"] - found["1 click in one slice"]
    assert found["box in one slice"] > 4 and float(by_box).is_integer()


class Twice(Protocol):
    """Asks each slice of a volume twice, and does not say how long that took."""

    every_slice = True

    def answers(self, prompted, truths, targets, rng):
        for _ in range(2):
            masks, _ = prompted.predict(boxes=np.array([[0, 0, 9, 9]] * len(targets)))
        return {"twice": [Answer(mask) for mask in masks]}


def test_of_a_protocol_that_measures_nothing_all_passes_count(make_shards, organs, discs, ticks):
    cases = LabelledCases(CaseSelection(shards=make_shards([organs(0, depth=5)], LABELS)))
    details = Details()
    evaluate(discs, cases, [Twice()], details=details)
    assert seconds(details) == {"twice": (1 + 2) * 5}


def test_the_command_writes_what_was_kept(make_shards, organs, run_folder, tmp_path, monkeypatch):
    shards = make_shards([organs(0), organs(1, depth=5)], LABELS)
    arguments = [f"--run={run_folder}", f"--data.shards={shards}", "--data.split=train"]
    arguments += [
        "--device=cpu",
        "--threads=1",
        "--protocols=[{class_path: Clicks, numbers: [1, 3]}]",
    ]
    for name, side in (("small", 32), ("again", 32), ("none", 0)):
        options = [*arguments, f"--output={tmp_path / name}", f"--thumbnails={side}"]
        if name == "again":
            monkeypatch.setattr("finetune.evaluation.evaluate.draw_results", lambda *_: None)
        run_program("finetune", COMMANDS, ["evaluate", *options])
    small, again = tmp_path / "small", tmp_path / "again"
    clicks = list(csv.DictReader((small / "clicks.csv").read_text().splitlines()))
    assert [line["clicks"] for line in clicks] == ["1", "2", "3"] * 4
    times = list(csv.DictReader((small / "times.csv").read_text().splitlines()))
    assert len(times) == 2 * 4 and all(float(line["seconds"]) > 0 for line in times)
    for name in ("results.csv", "clicks.csv", "pictures.zip"):  # whatever the machine
        assert (small / name).read_bytes() == (again / name).read_bytes()
    model = json.loads((small / "model.json").read_text())
    segmenter = load_segmenter(run_folder, torch.device("cpu"))
    sizes = {name: parameter.numel() for name, parameter in segmenter.named_parameters()}
    assert model["parameters"] == sum(sizes.values())
    trained = segmenter.trained_state_dict().keys() & sizes.keys()
    assert model["trained_parameters"] == sum(sizes[name] for name in trained) > 0
    assert not (tmp_path / "none" / "pictures.zip").exists()

    pictures = Thumbnails(small / "pictures.zip")
    rows = {line["case"] for line in clicks}
    assert all((case, target) in pictures for case in rows for target in LABELS)
    cases = LabelledCases(CaseSelection(shards=shards))
    for index in range(2):
        record = cases.shards.record(index)
        truth = np.isin(record.mask, LABELS["tumour"])
        kept = pictures.read(record.key, "tumour")
        image = record.image
        if truth.ndim == 3:
            place = truth.sum((1, 2)).argmax()
            image, truth = image[place], truth[place]
        assert np.array_equal(kept.truth, reduce_mask(truth, 32))
        assert kept.image.shape == kept.truth.shape == (23, 32)
        assert np.abs(kept.image - reduce_image(image, 32).astype(float)).mean() < 10  # JPEG
        assert [name.split(" per")[0] for name in kept.masks] == ["1 click", "3 clicks"]


def test_pictures_come_back_and_are_small(tmp_path):
    rng = np.random.default_rng(0)
    rows, columns = np.ogrid[:600, :800]
    mask = (rows - 300) ** 2 + (columns - 400) ** 2 < 150**2
    colour = np.repeat((mask * 200)[..., None], 3, 2).astype(np.uint8)
    grey = (mask * (200 << 8) + rng.integers(0, 255, mask.shape)).astype(np.uint16)
    assert reduce_image(grey, 200).max() == 200
    kept = [
        Thumbnail(
            f"case{n}",
            "täget/1",
            reduce_image(image, 200),
            reduce_mask(mask, 200),
            {"box": reduce_mask(~mask, 200)},
        )
        for n, image in enumerate((colour, grey))
    ]
    assert [each.image.shape for each in kept] == [(150, 200, 3), (150, 200)]
    assert abs(kept[0].truth.mean() - mask.mean()) < 0.002
    writer = ThumbnailWriter()
    for each in kept:
        writer.add(each)
    assert len(writer) == 2
    writer.write(tmp_path / "pictures.zip")
    assert (tmp_path / "pictures.zip").stat().st_size < 12_000
    read = Thumbnails(tmp_path / "pictures.zip").read("case1", "täget/1")
    assert np.array_equal(read.truth, kept[1].truth)
    assert np.array_equal(read.masks["box"], kept[1].masks["box"])
    assert reduce_mask(mask, 5000).shape == mask.shape  # never enlarged
    thin = np.zeros((4, 1000), bool)
    assert reduce_mask(thin, 100).shape == (1, 100)


def test_a_negative_size_is_refused(tmp_path: Path, capsys):
    options = ["--run=x", "--data.shards=y", f"--output={tmp_path}", "--thumbnails=-1"]
    with pytest.raises(SystemExit):
        run_program("finetune", COMMANDS, ["evaluate", *options])
    assert "thumbnails is -1; it must not be negative" in capsys.readouterr().err
