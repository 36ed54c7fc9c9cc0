"""What may be said of an adapted model to others, and what rebuilds it elsewhere."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from data_prep.common.errors import UserError
from data_prep.common.files import sha256
from data_prep.common.parsing import parse_file
from finetune.config import TrainConfig
from finetune.inference.loading import (
    DATA,
    SOURCES,
    find_checkpoint,
    load_segmenter,
    trained_with_masks,
)
from finetune.inference.published import Need
from finetune.model.kept import kept_weights
from finetune.model.segmenter import Segmenter
from finetune.model.text import TEXT_ROLE
from finetune.prompts.clip_files import CONFIG
from finetune.validation import SCORE
from pretrain.encoder.sam import SamEncoder
from pretrain.encoder.weights import HUB, find_weights
from pretrain.engine.checkpoint import Checkpoint, checkpoints_of
from pretrain.engine.metrics import read_metrics
from pretrain.publish.facts import (
    CLASS,
    WORDS,
    SetFacts,
    describe_set,
    is_public,
    public_options,
    training_hours,
    without_paths,
)
from pretrain.sizes import SIZES

OFFICIAL = {
    "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912": "sam_vit_b_01ec64.pth",
    "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622": "sam_vit_l_0b3195.pth",
    "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e": "sam_vit_h_4b8939.pth",
}
"""SAM's own checkpoints by SHA-256."""
UNPUBLISHED = "unpublished"
"""Stands for what a config must name and nobody need know."""
CHOICES = (*WORDS, "model", "prompts", "loss")
"""Beginnings of options whose values may be words."""


@dataclass(frozen=True)
class RunFacts:
    """A run of stage two, and the model in it."""

    checkpoint: Checkpoint
    segmenter: Segmenter
    config: TrainConfig
    options: Mapping[str, Any]
    """The config as YAML has it."""
    data: Mapping[str, Any]
    """Targets with their mask values, window, and how prompts were answered."""
    sources: list[dict[str, str]]
    """See `Segmenter.frozen_sources`."""
    needs: list[Need]
    files: Mapping[str, Path]
    """The files needed, by role."""
    texts: Mapping[str, Path]
    """The files of what embeds texts, by role; they are always published, as nothing else says
    where they could be had."""
    size: str
    """Name of the encoder's size."""
    score: float | None
    """Mean Dice on the groups kept from training; None if it was not validated."""
    step: int
    steps: int
    hours: float | None
    """Time spent in steps; None if no metrics say."""
    device: str
    packages: Mapping[str, str]
    """Versions by name."""
    shards: SetFacts

    @property
    def recipe(self) -> dict[str, Any]:
        """Options by dotted name."""
        return public_options(self.options, words=CHOICES)

    @property
    def identity(self) -> str:
        """The same for all states of one run: of its recipe, seed, data and frozen weights."""
        may_change = TrainConfig.MAY_CHANGE
        fixed = {k: v for k, v in self.recipe.items() if not k.startswith(may_change)}
        files = [need.sha256 for need in self.needs] + [*map(sha256, self.texts.values())]
        parts = [fixed, self.shards.fingerprint, files]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def public_config(self) -> dict[str, Any]:
        """A config that rebuilds the model, without anything that could be a path.

        What is left out has its default; the encoder's size stands in it, and of the files that
        the model was built on those that are on the Hub.
        """
        names = ("model", "prompts", "loss", "optim", "precision", "seed", "data")
        kept = _public({name: self.options[name] for name in names if name in self.options})
        kept["model"] |= {"encoder_size": self.size}
        kept["data"] |= {"shards": UNPUBLISHED, "targets": None, "cache": None}
        on_hub = {need.role: need.source for need in self.needs if need.source.startswith(HUB)}
        return {**kept, **on_hub, "output": UNPUBLISHED}


def read_run(run: Path, last: bool = False) -> RunFacts:
    """The facts of a run folder; loads its model, so that only what can be used is published.

    Args:
        last: Take the newest checkpoint, not the best one.

    Raises:
        UserError: Not a run of stage two, one without a whole checkpoint, or one whose frozen
            weights are gone.
    """
    checkpoint = find_checkpoint(run, last)
    if fault := checkpoint.fault():
        raise UserError(f"run: {checkpoint.folder}: {fault}")
    config, resolved = parse_file(TrainConfig, run / "config.yaml")
    if config.model.network is not None:
        raise UserError(f"run: {run} is a whole network without SAM, and is not published")
    segmenter = load_segmenter(run, torch.device("cpu"), last=last)
    assert isinstance(segmenter.image_encoder, SamEncoder)
    try:
        environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"run: {run} has no environment.json; is it a run folder?") from None
    trained = checkpoint.document(DATA) or {}
    trained["mask_prompts"] = trained_with_masks(config, trained)
    sources = checkpoint.document(SOURCES) or segmenter.frozen_sources()
    kept = kept_weights(run)
    texts = {role: path for role, path in kept.items() if role.startswith(TEXT_ROLE)}
    needs, files = _needs(kept, config, sources)
    options = yaml.safe_load(resolved)
    _name_tower(options, texts)
    digest = trained.pop("fingerprint", "")[:12]
    rows = read_metrics(run)
    return RunFacts(
        checkpoint=checkpoint,
        segmenter=segmenter,
        config=config,
        options=options,
        data=trained,
        sources=sources,
        needs=needs,
        files=files,
        texts=texts,
        size=next(name for name, size in SIZES.items() if size == segmenter.image_encoder.size),
        score=checkpoint.document(SCORE),
        step=int(checkpoint.folder.name.removeprefix("step-")),
        steps=_steps(run, config),
        hours=training_hours(rows, config.optim.batch_size),
        device=environment.get("device", "unknown"),
        packages=environment.get("packages", {}),
        shards=describe_set(str(config.data.shards), config.data.split, digest),
    )


def _name_tower(options: dict[str, Any], texts: Mapping[str, Path]) -> None:
    """Leave a tower's architecture in the options only where it is open_clip's, and as a word."""
    text = options["model"].get("text")
    if text and text["class_path"].endswith(".ClipText"):
        model = text["init_args"].pop("model", None)
        if model is not None and f"{TEXT_ROLE}{CONFIG}" not in texts:  # else a file says it
            text["init_args"]["model"] = model.replace("/", "-")


def _needs(
    kept: Mapping[str, Path], config: TrainConfig, sources: list[dict[str, str]]
) -> tuple[list[Need], dict[str, Path]]:
    """The files that frozen weights of encoder and decoder are read from, and where they are."""
    given = {"encoder": config.encoder, "sam": config.sam}
    files = {role: path for role, path in kept.items() if role in given}
    files = files or {k: find_weights(v) for k, v in given.items() if v is not None}
    frozen = {source["sha256"] for source in sources}
    needs = []
    for role, path in files.items():
        digest, name = sha256(path), given[role] or ""
        if digest in frozen:
            source = name if name.startswith(HUB) else OFFICIAL.get(digest, "")
            needs.append(Need(role, digest, source))
    return needs, {need.role: files[need.role] for need in needs}


def _steps(run: Path, config: TrainConfig) -> int:
    """Steps of the whole run; 0 if no checkpoint says."""
    if config.optim.steps is not None:
        return config.optim.steps
    newest = checkpoints_of(run)[-1:]
    return newest[0].state().steps if newest else 0


def _public(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options without those whose values could be paths; `trained` is of patterns."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            kept[name] = _public(value)
        elif name == "trained" or is_public(value, True, is_class=name == CLASS):
            kept[name] = value
    return kept


def results_text(folder: Path) -> list[str]:
    """The table that `python -m finetune evaluate` wrote, as lines of Markdown.

    Raises:
        UserError: The folder has no such table.
    """
    path = folder / "summary.md"
    if not path.is_file():
        raise UserError(f"results: {folder} has no summary.md, as `finetune evaluate` writes it")
    text = path.read_text(encoding="utf-8")
    return [without_paths(line) for line in text.splitlines()]
