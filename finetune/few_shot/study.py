"""The runs of a study, where they lie, and what must not change between them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from data_prep.common.cli import write_resolved_config
from data_prep.common.errors import UserError
from data_prep.common.files import sha256, write_json, write_text
from data_prep.common.parsing import parse_file
from finetune.config import EvaluateConfig, TrainConfig
from finetune.data.cases import LabelledCases
from finetune.few_shot.arms import Arm
from finetune.few_shot.config import FewShotConfig
from pretrain.encoder.weights import find_weights
from pretrain.engine.run import flat_options

TRAINING_MAY_DIFFER = (
    *("log_every", "save_every", "keep", "check_every", "threads", "trackers", "data.workers"),
    *("data.cache", "model.recompute_blocks", "output", "data.shards"),
)
EVALUATION_MAY_DIFFER = ("device", "threads", "output", "data.shards")
"""Options that decide where and how fast runs are made, not what comes out."""
CONFIG, RECIPE, EXAMINATION, SOURCES = "config.yaml", "train.yaml", "evaluate.yaml", "sources.json"
IMAGES, TESTED = "images", "test images"
"""Names of the digests of images; those of weights have the name of their option."""
RECORD = "run.json"
"""In the folder of an evaluation, written when that is done."""


@dataclass(frozen=True)
class Run:
    """An arm trained with one draw of a number of cases."""

    output: Path
    """Of the study."""
    arm: Arm
    cases: int | None
    """Number of labelled cases; None for all."""
    draw: int

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.arm.name}, {cases_text(self.cases)}, draw {self.draw}"

    @property
    def place(self) -> Path:
        """The run's folder in the folders of runs and of evaluations."""
        return Path(self.arm.folder, f"cases{self.cases or 'all'}-draw{self.draw}")

    @property
    def folder(self) -> Path:
        """Run folder of finetune/train.py."""
        return self.output / "runs" / self.place

    @property
    def evaluation(self) -> Path:
        """Output of `evaluate`."""
        return self.output / "evaluations" / self.place

    @property
    def is_done(self) -> bool:
        """Whether it is trained and evaluated."""
        return (self.evaluation / RECORD).is_file()

    def record(self) -> dict[str, Any]:
        """What `write_record` wrote."""
        return json.loads((self.evaluation / RECORD).read_text(encoding="utf-8"))

    def write_record(self, seconds: float | None) -> None:
        """Note that it is trained and evaluated, and with which groups.

        Args:
            seconds: How long that took; None if this is not known.
        """
        groups = self.groups()
        which = {"arm": self.arm.name, "cases": self.cases, "draw": self.draw}
        write_json(self.evaluation / RECORD, {**which, "groups": groups, "seconds": seconds})

    def groups(self) -> list[str]:
        """The groups whose cases it is given, hashed as in the shard set.

        Raises:
            UserError: There are fewer.
        """
        cases = LabelledCases(replace(self.arm.training.data, cases=self.cases), self.draw)
        return sorted({cases.shards.meta(image.record)["group"] for image in cases.images})


def cases_text(cases: int | None) -> str:
    """`1 case`, `5 cases` or `all cases`."""
    return f"{cases or 'all'} case{'' if cases == 1 else 's'}"


def runs_of(config: FewShotConfig, arms: Sequence[Arm]) -> list[Run]:
    """All runs of a study: its first draw of all arms and numbers, then the second, and so on."""
    numbers = [None if number == "all" else number for number in config.cases]
    return [
        Run(config.output, arm, number, draw)
        for draw in range(config.draws)
        for number in numbers
        for arm in arms
    ]


def take_folder(output: Path, resolved: str, runs: Sequence[Run]) -> None:
    """Make the folder of a study, or go on in one whose arms are the same.

    Raises:
        UserError: It holds other files; an arm, the images or the weights are others than before;
            or there are fewer cases than a run is to have.
    """
    known = output / CONFIG
    # what is hidden may be the config, which another task may be about to write
    if output.exists() and _holds_files(output) and not known.is_file():
        raise UserError(f"output: {output} holds other files; give a new or empty folder")
    missing = [run for run in runs if not run.is_done]
    arms = {run.arm.name: run.arm for run in runs}.values()
    sources = {}
    for arm in arms:
        begun = _is_begun(output, arm)
        if begun:
            _check_arm(output, arm)
        if lacking := [run for run in missing if run.arm.name == arm.name]:
            sources[arm.folder] = _find_sources(arm, lacking)
            if begun:
                _check_sources(output, arm, sources[arm.folder])
    output.mkdir(parents=True, exist_ok=True)
    if not known.is_file() or _without_task(known.read_text("utf-8")) != _without_task(resolved):
        write_resolved_config(output, resolved)
    for arm in arms:
        folder = output / "arms" / arm.folder
        folder.mkdir(parents=True, exist_ok=True)
        texts = {RECIPE: arm.recipe, EXAMINATION: arm.examination}
        if arm.folder in sources:
            texts[SOURCES] = json.dumps(sources[arm.folder], indent=2) + "\n"
        for name, text in texts.items():
            # the tasks of an array start together, and would wait for each other
            if not (folder / name).is_file() or (folder / name).read_text("utf-8") != text:
                write_text(folder / name, text)


def check_folder(output: Path, runs: Sequence[Run]) -> None:
    """Refuse a folder that holds no study of these arms; nothing is written.

    Raises:
        UserError: It holds none, or the options of an arm are others.
    """
    if not (output / CONFIG).is_file():
        raise UserError(f"output: {output}: holds no study; leave --table_only out to start one")
    for arm in {run.arm.name: run.arm for run in runs}.values():
        _check_arm(output, arm)


def _holds_files(output: Path) -> bool:
    """Whether it is a file, or a folder of some that are not hidden."""
    return not output.is_dir() or any(not path.name.startswith(".") for path in output.iterdir())


def _without_task(resolved: str) -> dict[str, Any]:
    values = yaml.safe_load(resolved)
    return {name: value for name, value in values.items() if name not in ("task", "tasks")}


def _check_arm(output: Path, arm: Arm) -> None:
    """Refuse an arm whose options have changed.

    Raises:
        UserError: Names the option.
    """
    for kind, name, resolved, may_differ in (
        (TrainConfig, RECIPE, arm.recipe, TRAINING_MAY_DIFFER),
        (EvaluateConfig, EXAMINATION, arm.examination, EVALUATION_MAY_DIFFER),
    ):
        path = output / "arms" / arm.folder / name
        if not path.is_file():
            continue
        # what an earlier version did not name has today's default
        before = flat_options(yaml.safe_load(parse_file(kind, path)[1]))
        now = flat_options(yaml.safe_load(resolved))
        for option in sorted(before.keys() | now.keys()):
            if before.get(option) != now.get(option) and option not in may_differ:
                raise UserError(
                    f"output: {output} was begun with {option} {before.get(option)} for the arm"
                    f" {arm.name!r}, not {now.get(option)}; give a new folder, or the arm a new"
                    " name"
                )


def _find_sources(arm: Arm, missing: Sequence[Run]) -> dict[str, str]:
    """Digests of what an arm's runs are made from: weights by the option that names them, images.

    Args:
        missing: Its runs that are yet to be made.

    Raises:
        UserError: Weights are not there, or there are fewer cases than a run is to have.
    """
    config = arm.training
    most = max(run.cases or 1 for run in missing)
    cases = LabelledCases(replace(config.data, cases=most))
    tested = LabelledCases(arm.evaluation.data, arm.evaluation.seed)
    weights = {"encoder": config.encoder, "sam": config.sam}
    found = {name: sha256(find_weights(file)) for name, file in weights.items() if file is not None}
    tower = {} if config.model.text is None else config.model.text.init_args
    if (file := tower.get("pretrained")) and Path(file).is_file():  # or the name of known weights
        found["model.text.pretrained"] = sha256(Path(file))
    return {**found, IMAGES: cases.shards.fingerprint, TESTED: tested.shards.fingerprint}


def _check_sources(output: Path, arm: Arm, sources: Mapping[str, str]) -> None:
    """Refuse to mix runs that are made from different weights or images.

    Raises:
        UserError: Names what is different.
    """
    path = output / "arms" / arm.folder / SOURCES
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else sources
    for name, digest in sources.items():
        if before.get(name, digest) != digest:  # an earlier version had no digest of test images
            what = name if name in (IMAGES, TESTED) else f"weights of --{name}"
            raise UserError(
                f"output: the {what} have changed since the arm {arm.name!r} was started in"
                f" {output}; restore them, or give a new folder"
            )


def _is_begun(output: Path, arm: Arm) -> bool:
    """Whether there is anything of a run of an arm, so that its options cannot change any more."""
    saved = (output / "runs" / arm.folder).glob("*/checkpoints/step-*")
    return any(saved) or any((output / "evaluations" / arm.folder).glob(f"*/{RECORD}"))
