"""Texts for the targets of a data set: names, definitions, and templates that names are put into.

A file has some wordings for training and others, marked `held_out`, that are only evaluated on:

    templates:
      train: ["{}", "segment the {}"]
      held_out: ["where is the {}?"]
    targets:
      spleen:
        labels: [lien]            # what else data sets call it; may be left out
        train:
          names: [spleen, splenic tissue]
          definitions: [the organ under the left ribs that filters blood]
        held_out:
          names: [spleen tissue]
          definitions: [the blood filter beneath the ribs on the left]

A name stands in a template; a definition is a text of its own.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.common.errors import UserError
from data_prep.common.messages import nearest
from data_prep.common.yaml_text import load_yaml

GAP = "{}"
"""Where a template takes a name, or several: "liver, spleen and aorta"."""


@dataclass(frozen=True)
class Wordings:
    """Ways to say one target."""

    names: tuple[str, ...] = ()
    definitions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """A target: what data sets call it, and ways to say it."""

    labels: tuple[str, ...] = ()
    train: Wordings = Wordings()
    held_out: Wordings = Wordings()


@dataclass(frozen=True)
class Templates:
    """Texts with a gap for a name."""

    train: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()


class TextBank:
    """The texts of a file.

    Attributes:
        targets: By name.

    Raises:
        UserError: A file that cannot be read, a key that is not known or missing, an empty list, a
            template without its gap, or a text that stands for two targets, or that is held out
            and trained on.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            where = "give a file such as configs/text/amos.yaml"
            raise UserError(f"bank: {str(path)!r} is not a file of texts; {where}")
        try:
            values = load_yaml(self.path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{path}: cannot be read as text") from None
        values = self._mapping(values, "the file", ("templates", "targets"))
        self.templates: Templates = self._of(Templates, values.get("templates"), "templates")
        targets = self._mapping(values.get("targets"), "targets", None)
        self.targets: dict[str, Target] = {}
        for name, value in targets.items():
            self.targets[name] = self._of(Target, value, f"targets.{name}")
        self._by_label: dict[str, str] = {}
        for name, target in self.targets.items():
            for label in dict.fromkeys(_plain(label) for label in (name, *target.labels)):
                if label in self._by_label:
                    raise self._error(f"{label!r} is a label of {self._by_label[label]} and {name}")
                self._by_label[label] = name
        self._check()

    def check(self, targets: Iterable[str]) -> None:
        """Refuse targets that it has no texts for.

        Raises:
            UserError: Names the first.
        """
        for target in targets:
            self._find(target)

    def texts(self, target: str, held_out: bool = False) -> list[str]:
        """Every text for one target, for training or for evaluation alone."""
        return [text for way in self._ways(self._find(target), held_out) for text in way]

    def draw(self, targets: Sequence[str], rng: np.random.Generator, held_out: bool = False) -> str:
        """A text for one target, or for several together.

        For one it is a definition as often as it is a name in a template; for several it is their
        names in a template. Held out are a template, a name or a definition, each as often.

        Raises:
            UserError: There is no text, or no held-out one, for the targets.
        """
        found = [self._find(target) for target in targets]
        if len(found) > 1:
            names = [_one(target.train.names, rng) for target in found]
            together = f"{', '.join(names[:-1])} and {names[-1]}"
            templates = self.templates.held_out if held_out else self.templates.train
            ways: list[Sequence[str]] = [_filled(templates, [together])]
        else:
            ways = self._ways(found[0], held_out)
        if not any(ways):
            raise self._error(f"has no held-out text for {', '.join(targets)}")
        text: str = _one(_one([way for way in ways if way], rng), rng)
        return text

    def _ways(self, target: Target, held_out: bool) -> list[Sequence[str]]:
        """Texts for one target, by what they are made of."""
        train, new = self.templates.train, self.templates.held_out
        if not held_out:
            return [_filled(train, target.train.names), target.train.definitions]
        return [
            _filled(new, target.train.names),
            _filled((*train, *new), target.held_out.names),
            target.held_out.definitions,
        ]

    def _find(self, target: str) -> Target:
        name = self._by_label.get(_plain(target))
        if name is None:
            hint = nearest(_plain(target), self._by_label) or f"; it has {', '.join(self.targets)}"
            raise self._error(f"has no texts for target {target!r}{hint}; add them or its `labels`")
        return self.targets[name]

    def _check(self) -> None:
        for kind in ("train", "held_out"):
            for template in getattr(self.templates, kind):
                if template.count(GAP) != 1:
                    raise self._error(f"template {template!r} must have one {GAP}")
        said: dict[str, str] = {}
        for name, target in self.targets.items():
            for kind in ("train", "held_out"):
                wordings: Wordings = getattr(target, kind)
                if kind == "train" and not wordings.names:
                    raise self._error(f"targets.{name}.train.names: give at least one")
                if any(GAP in text for text in (*wordings.names, *wordings.definitions)):
                    raise self._error(f"targets.{name}.{kind}: {GAP} is for templates")
                for text in self.texts(name, kind == "held_out"):
                    who = f"{name} ({kind})"
                    if (plain := _plain(text)) in said:
                        raise self._error(f"{text!r} is a text of {said[plain]} and again of {who}")
                    said[plain] = who
        if not self.targets or not self.templates.train:
            raise self._error("give at least one target, and one template for training")

    def _of(self, kind: type[Any], value: Any, place: str) -> Any:
        """One of the dataclasses above, from its YAML form."""
        names = [field.name for field in fields(kind)]
        values = self._mapping(value, place, names)
        made: dict[str, Any] = {}
        for name, inner in values.items():
            if kind is Target and name != "labels":
                made[name] = self._of(Wordings, inner, f"{place}.{name}")
                continue
            texts = inner if isinstance(inner, list) else []
            if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
                raise self._error(f"{place}.{name}: expected a list of texts, and at least one")
            if len({_plain(text) for text in texts}) < len(texts):
                raise self._error(f"{place}.{name}: a text stands there twice")
            made[name] = tuple(texts)
        return kind(**made)

    def _mapping(self, value: Any, place: str, known: Sequence[str] | None) -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            what = f" of {', '.join(known)}" if known else ""
            raise self._error(f"{place}: expected a mapping{what}")
        for key in value:
            if known is not None and key not in known:
                raise self._error(f"{place}: there is no {key!r}; there are {', '.join(known)}")
        return {str(key): inner for key, inner in value.items()}

    def _error(self, what: str) -> UserError:
        return UserError(f"{self.path}: {what}")


def _filled(templates: Iterable[str], names: Sequence[str]) -> list[str]:
    return [template.replace(GAP, name) for template in templates for name in names]


def _plain(text: str) -> str:
    """A text without case, punctuation and doubled spaces."""
    return " ".join(re.findall(r"\w+", text.lower().replace("_", " ")))


def _one(choices: Sequence[Any], rng: np.random.Generator) -> Any:
    return choices[int(rng.integers(len(choices)))]
