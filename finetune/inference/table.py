"""Many images, of a table or a folder: the model is loaded once, and a bad one stops no other."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import yaml
from tqdm import tqdm

from data_prep.common.cli import write_resolved_config
from data_prep.common.errors import UserError
from data_prep.common.files import sha256, write_json
from finetune.inference.done import Done
from finetune.inference.files.base import Reading, SliceError
from finetune.inference.files.opening import kind_of, open_image, stem
from finetune.inference.job import Job, finish, prepare
from finetune.inference.loading import find_checkpoint
from finetune.inference.objects import UNPROMPTED
from finetune.inference.options import PredictConfig
from finetune.inference.predict import load, reading, seen_by, spread_of, unlike_training
from finetune.inference.published import SEGMENTER, find_run
from finetune.inference.rows import BadRowError, Listed, list_images, objects_of, read_images
from finetune.inference.task import Task

WEIGHTS = "sha256"
"""What `weights.json` says of the trained weights."""
MAY_DIFFER = ("device", "threads", "prompts")
"""Options that another start in the same folder may change."""


def predict_table(config: PredictConfig, resolved: str) -> None:
    """Segment all images of a table, or of a folder by a model without prompts.

    What is there already is kept, unless its rows have changed.

    Raises:
        UserError: The table, the folder or the model cannot be used; or, when all else is done,
            rows that could not.
    """
    table = config.prompts
    images = read_images(table) if table else list_images(config.input, config.output)
    if not config.input.is_dir():
        raise UserError(
            f"input: {config.input} is no folder; with --prompts it is that of the files"
        )
    seen = seen_by(config)
    take_folder(config.output, resolved, digest_of(config))
    faults = skipped = 0
    how = reading(config, seen, has_window=True)
    segmenter = None
    rows = [row for listed in images for row in listed.rows.values()]
    texts = any(row.get("text") or row.get("target") for row in rows)
    masks, told = any(row.get("mask") for row in rows), set[str]()
    done = Done(config.output, config.input, config.overlay, spread_of(config))
    with tqdm(total=len(images), desc="predict", unit="image", mininterval=1) as progress:
        for listed in images:
            try:
                if done.holds(listed):
                    skipped += 1
                else:
                    job = job_of(listed, config, how, done)
                    for note in unlike_training(config.plane, masks, seen, job.image):
                        if note not in told:
                            progress.write(note)
                        told.add(note)
                    if segmenter is None:
                        segmenter = load(config, texts)
                    if not job.wanted and segmenter.decoder.takes_prompts:
                        if table is None:
                            raise UserError(
                                f"prompts: {config.input} is a folder, and this model needs prompts"
                                " for each of its images; give them in a table"
                            )
                        raise BadRowError(listed.line, UNPROMPTED)
                    if done.has_changed(listed):
                        progress.write(f"{listed.name}: its rows have changed, so it is done again")
                    with errors_of(listed.line):
                        finish(job, segmenter, config.adapters)
                        done.add(listed, job.task.output)
            except BadRowError as error:
                faults += 1
                named = f"{table}, {error}" if table else f"{listed.name}: {error.reason}"
                progress.write(f"error: {named}", file=sys.stderr)
            progress.update()
    written = len(images) - faults - skipped
    print(f"{config.output}: {written} masks written, {skipped} were there already")
    if faults and table is None:
        raise UserError(
            f"input: {faults} of {len(images)} images of {config.input} were not segmented, as said"
            " above; start again when they are mended or removed: the others are kept"
        )
    if faults:
        raise UserError(
            f"prompts: {faults} of {len(images)} images of {table} were not segmented, as said"
            " above; correct their rows and start again: the others are kept"
        )


def digest_of(config: PredictConfig) -> str | None:
    """SHA-256 of the trained weights of a run, which may train on under the same name."""
    if config.run is None:
        return None
    checkpoint = find_checkpoint(find_run(config.run), config.checkpoint == "last")
    return sha256(checkpoint.weights_file(SEGMENTER))


def take_folder(output: Path, resolved: str, weights: str | None) -> None:
    """Make the output folder, or go on in one that was begun with the same options and weights.

    Raises:
        UserError: It holds other files, or was begun with others.
    """
    model = output / "weights.json"
    kept = output / "config.yaml"
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not kept.is_file():
            raise UserError(f"output: {output} holds other files; give a new or empty folder")
        before = yaml.safe_load(kept.read_text(encoding="utf-8"))
        now = yaml.safe_load(resolved)
        changed = [name for name in now if name not in MAY_DIFFER and now[name] != before.get(name)]
        if changed:
            raise UserError(
                f"output: {output} was begun with another {changed[0]}; give a new folder"
            )
        if model.is_file() and json.loads(model.read_text(encoding="utf-8")) != {WEIGHTS: weights}:
            raise UserError(
                f"output: {output} was begun with other weights of the run, which has been trained"
                " since; give a new folder, or remove this one to have all masks of one model"
            )
    output.mkdir(parents=True, exist_ok=True)
    write_resolved_config(output, resolved)
    write_json(model, {WEIGHTS: weights})


@contextmanager
def errors_of(line: int) -> Iterator[None]:
    """Whatever an image brings about, as an error of its row.

    Raises:
        BadRowError: Something was raised that is for a user, or that a file can bring about.
    """
    try:
        yield
    except UserError as error:
        raise BadRowError(line, str(error).replace("input: ", "file: ", 1)) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise BadRowError(
            line, f"{error.filename}: {reason}" if error.filename else reason
        ) from None
    except (ValueError, MemoryError) as error:  # whose text may quote a header
        raise BadRowError(line, f"it cannot be used ({type(error).__name__})") from None


def job_of(listed: Listed, config: PredictConfig, how: Reading, done: Done) -> Job:
    """An image with its objects, ready to be segmented.

    Raises:
        BadRowError: A row is wrong, or the image cannot be used.
    """
    with errors_of(listed.line):
        path = Path(listed.name)
        if not path.name or path.is_absolute() or ".." in path.parts:
            raise UserError(f"file: {listed.name!r} is not a path below the input folder")
        source = config.input / path
        kind = kind_of(source)
        wanted, chosen = objects_of(listed.rows, config.input)
        try:
            image = open_image(source, _reading_of(kind, replace(how, slice=chosen)))
        except SliceError:
            if chosen is None and any(row.get("slice") for row in listed.rows.values()):
                raise UserError(
                    f"slice: {source} is not a volume; all of its rows must name the same slice"
                ) from None
            raise
        name = (path.name if source.is_dir() else stem(path.name)) + (
            config.suffix or image.outputs[0]
        )
        task = Task(
            input=source,
            output=config.output / path.with_name(name),
            wanted=wanted,
            numbered="object" in listed.rows[listed.line],
            overlay=config.overlay,
            spread=spread_of(config),
        )
        done.claim(task, listed)
        return prepare(task, image)


def _reading_of(kind: str, how: Reading) -> Reading:
    """Options of a table without those that are for its images of other kinds."""
    if kind == "picture":
        return replace(how, plane=None, channel=0, series=None)
    return replace(how, series=None) if kind == "nifti" else replace(how, channel=0)
