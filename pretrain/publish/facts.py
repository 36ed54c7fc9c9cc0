"""What may be said of a run to others: its recipe, data, compute and results, without a path, a
record key or anything else of the machine it ran on.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_prep.commands.info import fingerprint
from data_prep.common.errors import UserError
from data_prep.loader.dataset import ShardDataset
from pretrain.config import PretrainConfig
from pretrain.encoder.weights import ENCODER, HUB
from pretrain.engine.checkpoint import Checkpoint, checkpoints_of
from pretrain.engine.metrics import read_metrics

PRIVATE = ("output", "resume", "start_from", "data.shards", "evaluators", "skip_keys")
"""Beginnings of options that name files, records or a machine."""
INCIDENTAL = ("threads", "log_every", "save_every", "keep", "data.workers")
"""Beginnings of options that say nothing of the encoder."""
WORDS = ("encoder_size", "precision", "objectives", "optim", "data.split", "data.augmentation")
"""Beginnings of options whose values may be words; those of all others may be numbers."""

CLASS = "class_path"
"""Option that names a class."""
FILE_NAME = re.compile(r".*\.[A-Za-z]\w*")

CLASSES_LISTED = 20
"""Where a set has more classes, their names, which were those of folders, are left out."""

PROBE_TEXTS = ("probes.md", "summary.md")
"""Names that the text of a probe may have."""


@dataclass(frozen=True)
class SetFacts:
    """A shard set that a run was trained on."""

    fingerprint: str
    """First 12 hexadecimal digits of `ShardDataset.fingerprint`."""
    figures: list[tuple[str, str]]
    """Name and text of each figure; none if the set lies elsewhere now."""


@dataclass(frozen=True)
class RunFacts:
    """A run of stage one."""

    checkpoint: Checkpoint
    """The newest whole one."""
    name: str
    """Size of the encoder."""
    image_size: int
    """Side of the training images, in pixels."""
    step: int
    steps: int
    """Steps of the whole run."""
    samples: int
    """Images seen, each as often as it was."""
    hours: float | None
    """Time spent in steps; None if no metrics say."""
    device: str
    packages: dict[str, str]
    """Versions by name."""
    recipe: dict[str, Any]
    """Options by dotted name."""
    sets: list[SetFacts]
    results: list[tuple[str, float, int]]
    """Name, newest value and step of each number that an evaluator logged."""
    started_from: str | None
    """Name on the Hub of the weights that training started from; "" for others, None for new."""

    @property
    def identity(self) -> str:
        """The same for all states of one run: of its recipe, seed and data.

        What a run may go on with counts for nothing.
        """
        fixed = {
            k: v for k, v in self.recipe.items() if not k.startswith(PretrainConfig.MAY_CHANGE)
        }
        parts = [fixed, [each.fingerprint for each in self.sets], self.started_from]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_run(run: Path) -> RunFacts:
    """The facts of a run folder.

    Raises:
        UserError: Not a run of stage one, or one without a whole checkpoint.
    """
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
        shards, optim = config["data"]["shards"], config["optim"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        raise UserError(f"run: {run} is not a run folder of pretrain/train.py") from None
    checkpoint = _newest_whole(run)
    encoder, state = checkpoint.document(ENCODER), checkpoint.state()
    roots = [shards] if isinstance(shards, str) else shards
    known = state.bound.get("data.shards of fingerprint", [""] * len(roots))
    source = config.get("start_from")
    rows = read_metrics(run)
    return RunFacts(
        checkpoint=checkpoint,
        name=encoder["name"],
        image_size=encoder["image_size"],
        step=state.step,
        steps=optim["steps"] or state.steps,
        samples=state.samples_seen,
        hours=training_hours(rows, optim["batch_size"]),
        device=environment.get("device", "unknown"),
        packages=environment.get("packages", {}),
        recipe=public_options(config),
        sets=[
            describe_set(root, config["data"].get("split", "train"), digest)
            for root, digest in zip(roots, known, strict=True)
        ],
        results=_results(rows),
        started_from=source and (source if str(source).startswith(HUB) else ""),
    )


def _newest_whole(run: Path) -> Checkpoint:
    faults = [f"{run} has no checkpoint; has it saved one?"]
    for checkpoint in reversed(checkpoints_of(run)):
        fault = checkpoint.fault()
        if not fault and checkpoint.weights_file(ENCODER).is_file():
            return checkpoint
        faults.append(f"{checkpoint.folder}: {fault or 'it holds no encoder'}")
    raise UserError(f"run: {faults[-1]}")


def public_options(
    config: Mapping[str, Any], prefix: str = "", words: tuple[str, ...] = WORDS
) -> dict[str, Any]:
    """Options of a recipe by dotted name, without those that others need not or must not see.

    Numbers are harmless, words only where an option's values are words; whatever could be a path
    is left out.

    Args:
        words: Beginnings of options whose values may be words.
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= public_options(value, f"{name}.", words)
            continue
        may_be_shown = is_public(value, name.startswith(words), is_class=key == CLASS)
        if may_be_shown and not name.startswith(PRIVATE + INCIDENTAL):
            found[name] = value
    return found


def is_public(value: Any, may_be_word: bool, is_class: bool = False) -> bool:
    """Whether the value of an option is a number, truth value, null, or a word if it may be one.

    What could name a file is not a word: a path with folders, a name with a suffix, the name of
    something in the working folder. A list is public if all of its items are.

    Args:
        is_class: It is the dotted path of a class.
    """
    if isinstance(value, list):
        return all(is_public(item, may_be_word, is_class) for item in value)
    if isinstance(value, str):
        if not may_be_word or re.fullmatch(r"[\w.+-]*", value) is None:
            return False
        return is_class or not value or not (FILE_NAME.fullmatch(value) or Path(value).exists())
    return value is None or isinstance(value, bool | int | float)


def describe_set(root: str, split: str, digest: str) -> SetFacts:
    """What `info` says of a shard set, if it is the one with this fingerprint.

    Args:
        root: Its folder or URL, which is not repeated.
        digest: Beginning of its fingerprint; "" if the run did not keep it.
    """
    try:
        dataset = ShardDataset(root, split)
    except (UserError, OSError, ValueError, KeyError):
        return SetFacts(digest or "unknown", [])
    if not dataset.fingerprint.startswith(digest):
        return SetFacts(digest, [])
    classes = dataset.info.get("classes", {})
    figures = [
        (name.strip(), text)
        for name, text in fingerprint(dataset.info)
        if len(classes) <= CLASSES_LISTED or not name.startswith("classes ")
    ]
    if len(classes) > CLASSES_LISTED:
        figures.append(("classes", str(len(classes))))
    return SetFacts(dataset.fingerprint[:12], figures)


def training_hours(rows: list[dict[str, float]], batch: int) -> float | None:
    """Time of all logged steps, from their speed; None if no metrics say."""
    seconds, before = 0.0, 0.0
    for row in rows:
        if row.get("images_per_second"):
            seconds += (row["step"] - before) * batch / row["images_per_second"]
            before = row["step"]
    return seconds / 3600 if before else None


def _results(rows: list[dict[str, float]]) -> list[tuple[str, float, int]]:
    newest: dict[str, tuple[float, int]] = {}
    for row in rows:
        newest |= {
            name: (value, int(row["step"]))
            for name, value in row.items()
            if "/" in name and isinstance(value, int | float)
        }
    return [(name, *found) for name, found in newest.items()]


def probe_text(folder: Path) -> list[str]:
    """What `python -m pretrain probe` wrote, as lines of Markdown below a heading of level 2.

    Of paths only the last part is kept, and commands are left out.

    Raises:
        UserError: The folder has no such text.
    """
    path = next((folder / name for name in PROBE_TEXTS if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"probe: {folder} has no {PROBE_TEXTS[0]}, as `pretrain probe` writes it")
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith("# ") and "python -m" not in line]
    nested = [f"#{line}" if line.startswith("#") else line for line in kept]
    return "\n".join(without_paths(line) for line in nested).strip().splitlines()


def without_paths(text: str) -> str:
    """Text in which only the last part of each path is left; fractions stay as they are."""

    def last(match: re.Match[str]) -> str:
        token = match[0]
        return re.split(r"[/\\]", token)[-1] if re.search("[A-Za-z~]", token) else token

    return re.sub(r"[^\s|`]*?(?:[/\\][^\s|`/\\]+)+", last, text)
