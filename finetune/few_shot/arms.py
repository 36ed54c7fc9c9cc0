"""The arms of a study: recipes with their options, resolved and checked before any is trained."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.common.errors import UserError
from data_prep.common.given import options_of
from data_prep.common.messages import choices, nearest
from data_prep.common.parsing import parse, spelt
from finetune.config import EvaluateConfig, TrainConfig
from finetune.evaluation.protocols import Protocol
from finetune.few_shot.config import FewShotConfig
from finetune.model.decoder import Decoder
from finetune.model.network import Network

TRAINING_OWN = ("output", "resume", "seed", "data.shards", "data.cases")
EVALUATION_OWN = ("output", "run", "sam", "encoder", "checkpoint", "image_size", "data.shards")
"""Options that each run of a study is given by the study."""


@dataclass(frozen=True)
class Arm:
    """One of the ways to train that are compared."""

    name: str
    folder: str
    """Its name as that of a folder."""
    training: TrainConfig
    """Of its runs; what differs between them has a placeholder."""
    recipe: str
    """The same as YAML."""
    evaluation: EvaluateConfig
    """Of its runs, likewise."""
    examination: str
    """The same as YAML."""


def find_arms(config: FewShotConfig) -> list[Arm]:
    """The arms, in the order given.

    Raises:
        UserError: An option that is wrong, or two arms whose names are too much alike.
    """
    arms: list[Arm] = []
    for name, given in _by_name(config.arms).items():
        arm = _resolve(name, given, config)
        for other in arms:
            if other.folder == arm.folder:
                raise UserError(f"arms: {other.name!r} and {name!r} are too much alike")
        arms.append(arm)
    return arms


def _by_name(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of each arm; those of `--arms.NAME.OPTION` are found under `NAME.OPTION`."""
    arms: dict[str, dict[str, Any]] = {}
    for key, value in given.items():
        if not isinstance(key, str):
            raise UserError(f"arms: the name {key!r} is not a text; put it in quotes")
        name, dot, option = key.partition(".")
        if dot and name not in arms:
            raise UserError(f"arms.{key}: there is no arm {name!r}{nearest(name, arms)}")
        if dot:
            arms[name][option] = value
        elif isinstance(value, Mapping):
            arms[name] = dict(value)
        else:
            raise UserError(f"arms.{name}: {value!r} is not a mapping of options")
    return arms


def _resolve(name: str, given: Mapping[str, Any], config: FewShotConfig) -> Arm:
    folder = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not folder:
        raise UserError(f"arms: {name!r} has no letter or digit to name a folder by")
    own = dict(given)
    recipes, protocols = own.pop("config", []), own.pop("protocols", None)
    words = [f"--config={recipe}" for recipe in _listed(recipes)]
    _refuse("training", config.training, TRAINING_OWN)
    _refuse(f"arms.{name}", own, TRAINING_OWN)
    _refuse("evaluation", config.evaluation, EVALUATION_OWN)
    words += [*_words(config.training, TrainConfig), *_words(own, TrainConfig)]
    training, recipe = _parsed(
        TrainConfig, f"arms.{name}", [*words, f"--data.shards={config.shards}", "--output=RUN"]
    )

    examination = dict(config.evaluation)
    network, decoder = training.model.network, training.model.decoder
    kind = decoder.load(Decoder) if network is None else network.load(Network)
    prompted = kind.takes_prompts
    if protocols is None:
        usual = ["Clicks", "Box"] if prompted else ["TargetOnly"]
        protocols = examination.get("protocols", usual)
    examination["protocols"] = _listed(protocols)
    if training.data.targets is not None:
        examination = {"data.targets": training.data.targets} | examination
    words = [
        *_words(examination, EvaluateConfig),
        f"--data.shards={config.shards}",
        "--run=RUN",
        "--output=OUT",
    ]
    evaluation, text = _parsed(EvaluateConfig, f"arms.{name}", words)
    if training.data.split == evaluation.data.split:
        split = training.data.split
        raise UserError(
            f"arms.{name}: trains on the split {split!r}, which is evaluated; see data.split"
        )
    for protocol in evaluation.protocols:
        if protocol.load(Protocol).gives_prompts != prompted:
            takes = "takes prompts" if prompted else "takes none; choose TargetOnly"
            raise UserError(f"arms.{name}: {protocol}: {network or decoder} {takes}")
    return Arm(name, folder, training, recipe, evaluation, text)


def _parsed(kind: type[Any], place: str, words: list[str]) -> tuple[Any, str]:
    try:
        return parse(kind, "few_shot", words)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _words(options: Mapping[str, Any], config: type[Any]) -> list[str]:
    """Options of a config as they are given on a command line."""
    known, words = options_of(config), []
    for name, value in options.items():
        if isinstance(value, bool) and name in known and bool not in known[name].alternatives:
            value = spelt(value, choices(known[name].kind))  # `precision: no` in YAML
        words.append(f"--{name}={value if isinstance(value, str) else json.dumps(value)}")
    return words


def _refuse(place: str, given: Mapping[str, Any], own: tuple[str, ...]) -> None:
    for name in _names(given):
        if not isinstance(name, str):
            raise UserError(f"{place}: {name!r} is not the name of an option")
        if name in own:
            raise UserError(f"{place}: {name} is given to each run by the study; leave it out")


def _names(given: Mapping[Any, Any], prefix: str = "") -> Iterator[Any]:
    """Dotted names of options, those of groups among them; what is no text is given as it is."""
    for name, value in given.items():
        if not isinstance(name, str):
            yield name
            continue
        yield prefix + name
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{name}.")
