"""One self-contained HTML page about a quickstart: what was done, what came out, what it shows.

Every sentence about a result is computed from the run's files, whichever side wins.
"""

import json
from collections import Counter
from html import escape
from pathlib import Path

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from numpy.typing import NDArray

from data_prep.common.files import write_text
from data_prep.format.index import read_json
from data_prep.options import ReadOptions
from data_prep.readers.images import read_image
from finetune.evaluation import page
from finetune.evaluation.comparison.paired import Comparison, compare
from finetune.evaluation.comparison.results import read_results
from finetune.evaluation.drawing import draw_dice_by_clicks
from finetune.evaluation.metrics import dice
from finetune.evaluation.statistics import notes_on_groups
from finetune.evaluation.tables import ALL_TARGETS, FILLED_BOX, Summary, summarise
from finetune.inference.loading import load_segmenter
from pretrain.engine.checkpoint import latest_checkpoint
from pretrain.engine.figures import save_figure
from pretrain.engine.metrics import read_metrics
from pretrain.engine.progress import format_time

RUNS = ("pretrained", "untrained")
"""Folders below finetune/ and evaluate/: from the encoder of stage one, and from a new one."""

TEMPLATE_LIMITS = (
    "All labelled images, and most of those for pretraining, are slices of one averaged template"
    " brain, or views of them. The held-out ones are from a slab of that same brain, so they are"
    " easier than a new patient, and they say nothing about another scanner, organ or disease.",
    "Neighbouring slices look alike, and views of a slice overlap. As all are of one brain, there"
    " are no intervals: nothing shows how much brains differ.",
)
FOLDER_LIMITS = (
    "The volumes are split by case, so no held-out patient was seen in pretraining or adaptation;"
    " but all come from one collection, and nothing is said about images from elsewhere.",
    "Volumes are prompted slice by slice, in the slices that hold the target: in practice somebody"
    " has to know which ones these are.",
)
COMMON_LIMITS = (
    "Pretraining ran for minutes on few images. Such a run can show that the losses fall and that"
    " every part works; it cannot show what self-supervised pretraining achieves.",
    "The two adaptations differ in more than the pretrained values: an encoder that was loaded is"
    " kept frozen beside its adapters, a new one is trained whole. Each was run once, with one"
    " seed, so part of the difference is chance that the intervals do not cover.",
    "No conclusion about clinical images follows, for or against the method.",
)


def write_report(folder: Path) -> Path:
    """Write `report.html` from the files of a quickstart's output folder.

    Args:
        folder: With images/, labelled/, pretrain/, finetune/, evaluate/, predict/, state.json.

    Returns:
        Path of the page.
    """
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    rows = {run: read_results(folder / "evaluate" / run / "results.csv") for run in RUNS}
    summaries = {run: summarise(rows[run]) for run in RUNS}
    template = read_json(folder / "labelled" / "dataset.json")["source"]["layout"] == "samples"
    limits = (*(TEMPLATE_LIMITS if template else FOLDER_LIMITS), *COMMON_LIMITS)
    comparison = compare({run: rows[run] for run in reversed(RUNS)})
    body = [
        "<h1>A SAM encoder, pretrained without labels and adapted to clicks and boxes</h1>",
        page.paragraph(_overview(folder, template)),
        page.paragraph(_result_in_words(comparison)),
        f'<div class="limits"><p><strong>What this small sample can and cannot show</strong></p>'
        f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in limits)}</ul></div>",
        *_pretraining(folder),
        *_adaptation(folder, figures),
        *_evaluation(folder, figures, summaries, comparison),
        *_prediction(folder),
        *_circumstances(folder),
    ]
    write_text(folder / "report.html", page.document("samaritan: quickstart", body))
    return folder / "report.html"


def _overview(folder: Path, template: bool) -> str:
    images = read_json(folder / "images" / "dataset.json")["records"]
    splits = read_json(folder / "labelled" / "dataset.json")["splits"]
    config = yaml.safe_load((folder / "pretrain" / "config.yaml").read_text(encoding="utf-8"))
    checkpoint = latest_checkpoint(folder / "pretrain")
    assert checkpoint is not None
    size = checkpoint.document("encoder")["name"]
    what = (
        "real images that come with the installed packages: the MNI152 brain template of nilearn"
        " and the DICOM test files of pydicom"
        if template
        else "a folder of labelled volumes"
    )
    kind = "views of slices" if template else "volumes"
    return (
        f"The whole pipeline on {what}. A {size} encoder was pretrained on {images}"
        f" unlabelled images for {config['optim']['steps']} steps, then adapted on"
        f" {splits['train']['records']} labelled {kind}; {splits['test']['records']} {kind} were"
        " held out. The same adaptation from an encoder without pretraining is the comparison."
    )


def _result_in_words(comparison: Comparison) -> str:
    # what filled boxes are worth is the same whichever model is compared
    rows = [row for row in comparison.differences if not row.protocol.startswith(FILLED_BOX)]
    counts = Counter(row.verdict for row in rows)
    spread = ", ".join(
        f"{row.protocol} {row.dice:.3f} against {comparison.dice[row.protocol]:.3f}" for row in rows
    )
    means = f"Mean Dice on the held-out cases, pretrained against untrained: {spread}."
    if counts["no interval"]:
        return (
            f"{means} All held-out cases are of one group, such as a patient, so there is no"
            " interval of the difference and none can be called clear."
        )
    return (
        f"{means} Of {len(rows)} ways to prompt, the pretrained encoder is ahead in"
        f" {counts['ahead']} and behind in {counts['behind']};"
        f" in {counts['no clear difference']} there is no clear difference (ahead or behind:"
        " the 95 % interval of the mean difference leaves out 0)."
    )


def _pretraining(folder: Path) -> list[str]:
    rows = read_metrics(folder / "pretrain")
    names = [name for name in rows[0] if name not in ("step", "lr", "images_per_second")]
    changes = []
    for name in names:
        values = [row[name] for row in rows]
        share = max(1, len(values) // 10)
        first, last = float(np.mean(values[:share])), float(np.mean(values[-share:]))
        change = "fell" if last < first else "did not fall"
        changes.append(f"{name} {change} ({first:.3f} to {last:.3f})")
    figures = folder / "pretrain" / "figures"
    result = [
        "<h2>Pretraining</h2>",
        page.paragraph(f"Losses at the beginning and at the end: {'; '.join(changes)}."),
        page.figure(figures / "losses.png", "Loss of each objective, by step."),
    ]
    if (figures / "reconstructions.png").is_file():
        caption = (
            "Masked autoencoding on crops of training images: the crop, the patches the encoder"
            " saw, and the decoder's guess at the rest. A guessed patch has the true one's mean and"
            " contrast, as in the paper's figures: judge its structure, not its brightness."
        )
        result.append(page.figure(figures / "reconstructions.png", caption, width=420))
    return result


def _adaptation(folder: Path, figures: Path) -> list[str]:
    draw_training(
        {run: read_metrics(folder / "finetune" / run) for run in RUNS}, figures / "training.png"
    )
    cpu = torch.device("cpu")
    described = {run: load_segmenter(folder / "finetune" / run, cpu).describe() for run in RUNS}
    rows = []
    for part, other in zip(*described.values(), strict=True):
        states = [f"{p.state}, {p.source.replace(f'{folder}/', '')}" for p in (part, other)]
        rows.append([part.name, f"{part.parameters / 1e6:.2f} M", *states])
    return [
        "<h2>Adaptation</h2>",
        page.paragraph(
            "Both runs have the same recipe, labels and seed. Only weights that were loaded are"
            " frozen; what is new is trained."
        ),
        page.table(["part", "parameters", *RUNS], rows),
        page.figure(
            figures / "training.png",
            "Training loss, and Dice on training images after the first and the last prompt of a"
            " step.",
        ),
    ]


def draw_training(runs: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Loss and Dice over the steps of each run.

    Args:
        runs: Rows of metrics.jsonl, by the name shown in the legend.
    """
    titles = {
        "loss": "loss",
        "dice_first": "Dice, first prompt",
        "dice_last": "Dice, last prompt",
    }
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for run, rows in runs.items():
            axes.plot([row["step"] for row in rows], [row[name] for row in rows], label=run)
        axes.set(title=title, xlabel="step")
        if name != "loss":
            axes.set(ylim=(0, 1))
    figure.axes[0].legend()
    save_figure(figure, path)


def _evaluation(
    folder: Path,
    figures: Path,
    summaries: dict[str, list[Summary]],
    comparison: Comparison,
) -> list[str]:
    protocols = [row.protocol for row in comparison.differences]
    clicks = {name: int(name.split()[0]) for name in protocols if "click" in name}
    draw_dice_by_clicks(summaries, clicks, figures / "dice_by_clicks.png")
    cases = max(summary.cases for summary in summaries["pretrained"])
    held_out = read_json(folder / "labelled" / "dataset.json")["splits"]["test"]["records"]
    differences = [
        [
            row.protocol,
            f"{row.dice:.3f}",
            f"{comparison.dice[row.protocol]:.3f}",
            row.signed,
            row.verdict,
        ]
        for row in comparison.differences
    ]
    table = [
        [one.target, one.protocol, str(one.dice), str(two.dice), str(one.iou), str(two.iou)]
        for one, two in zip(*summaries.values(), strict=True)
        if one.target != ALL_TARGETS
    ]
    drawn = folder / "evaluate" / "pretrained" / "figures"
    return [
        "<h2>Held-out results</h2>",
        page.paragraph(
            f"{cases} of {held_out} held-out cases, prompted by a simulated user: the first click"
            " is where the object is deepest, each further one where an error is; or the prompt is"
            " the exact box of the object. `filled box` is what that box is worth by itself. Of a"
            " volume, each slice that holds the object is prompted (`per slice`), which only"
            " somebody who knows the truth can do."
        ),
        page.figure(
            figures / "dice_by_clicks.png",
            "Mean Dice by clicks, with 95 % interval if there is one.",
        ),
        page.table(["prompt", *RUNS, "difference of Dice", ""], differences),
        *map(page.paragraph, notes_on_groups(row.difference for row in comparison.differences)),
        page.paragraph("The same by target, mean with 95 % interval over groups:"),
        page.table(
            ["target", "prompt", *(f"{m}, {run}" for m in ("Dice", "IoU") for run in RUNS)], table
        ),
        "<h2>Click by click</h2>",
        page.paragraph(
            "The pretrained run's best, median and worst case under the most clicks. Blue: the"
            " prediction; yellow line: the truth; green dots: clicks on the object; red"
            " dots: clicks on the background."
        ),
        *(page.figure(drawn / f"{name}.png", "") for name in ("best", "median", "worst")),
    ]


def _prediction(folder: Path) -> list[str]:
    files = folder / "predict"
    prompt = read_json(files / "prompt.json")
    mask, truth = (_read_mask(files / f"{name}.png") for name in ("mask", "truth"))
    count = len(prompt["clicks"].split())
    caption = (
        f"“{prompt['target']}” from {count} click{'s' if count > 1 else ''}, by"
        f" python -m finetune predict on a PNG file; Dice against the truth"
        f" {dice(mask, truth):.3f}. The clicks are those of a simulated user who knows the truth."
    )
    return [
        "<h2>Prediction on a new image</h2>",
        page.figure(files / "mask_overlay.png", caption, width=420),
    ]


def _read_mask(path: Path) -> NDArray[np.bool_]:
    return read_image(path, ReadOptions()).array > 0


def _circumstances(folder: Path) -> list[str]:
    seconds = json.loads((folder / "state.json").read_text(encoding="utf-8"))["seconds"]
    times = [[name, format_time(value)] for name, value in seconds.items()]
    environment = read_json(folder / "pretrain" / "environment.json")
    versions = {"python": environment["python"], **environment["packages"]}
    return [
        "<h2>Time and software</h2>",
        page.table(["step", "time"], [*times, ["all", format_time(sum(seconds.values()))]]),
        page.paragraph(
            f"On {environment['device']}, {environment['threads']} threads. "
            + ", ".join(f"{name} {version}" for name, version in versions.items())
            + "."
        ),
    ]
