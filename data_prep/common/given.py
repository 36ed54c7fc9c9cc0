"""The options of a config dataclass, and the values that a user gave for them.

Options are the fields of a dataclass, nested ones under dotted names. Values come from
`--config FILE` and from `--dotted.name VALUE`; later ones replace earlier ones.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from data_prep.common.components import Component
from data_prep.common.errors import UserError
from data_prep.common.messages import choices, nearest
from data_prep.common.yaml_text import load_yaml, read_yaml

Configs = tuple[type[Any], ...]
"""Dataclasses whose fields together are the options of a command."""


@dataclass(frozen=True)
class Option:
    """One option of a config dataclass."""

    kind: Any
    """Its type."""
    default: Any
    """`dataclasses.MISSING` if it must be given."""
    base: str
    """Dotted path of the base class if it is a `Component` or holds some, else ""."""

    @property
    def alternatives(self) -> tuple[Any, ...]:
        """The members of its type if that is a union, else the type alone."""
        is_union = typing.get_origin(self.kind) in (typing.Union, types.UnionType)
        return typing.get_args(self.kind) if is_union else (self.kind,)

    @property
    def is_mapping(self) -> bool:
        """Whether its values have names of their own."""
        return any(typing.get_origin(kind) is dict for kind in self.alternatives)

    @property
    def is_list(self) -> bool:
        """Whether it takes a list."""
        return any(typing.get_origin(kind) in (list, tuple) for kind in self.alternatives)


def options_of(config_class: type[Any], prefix: str = "") -> dict[str, Option]:
    """Every option of a config dataclass by dotted name."""
    hints = typing.get_type_hints(config_class)
    options: dict[str, Option] = {}
    for field in fields(config_class):
        kind, name = hints[field.name], prefix + field.name
        if isinstance(kind, type) and is_dataclass(kind):
            options |= options_of(kind, f"{name}.")
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        options[name] = Option(kind, default, field.metadata.get("base", ""))
    return options


class Given:
    """The values that a user gave, and where each came from.

    Args:
        configs: Dataclasses of the options. Their `RENAMED`, if they have one, maps names of
            earlier versions to today's.

    Attributes:
        values: Value by dotted name of the option.
        places: For error messages: `--name`, or the file and name.
    """

    def __init__(self, configs: Configs) -> None:
        self.options: dict[str, Option] = {}
        self.renamed: dict[str, str] = {}
        for config in configs:
            self.options |= options_of(config)
            self.renamed |= getattr(config, "RENAMED", {})
        self.values: dict[str, Any] = {}
        self.places: dict[str, str] = {}

    def add_arguments(self, arguments: Sequence[str]) -> None:
        """Take over the values of a command line and of the files it names, in order.

        Raises:
            UserError: An unknown option, a missing value, or a file that cannot be read.
        """
        for name, text in pairs(arguments):
            if name == "config" and text is not None:
                self.add_file(Path(text))
            else:
                self._add_argument(name, text)

    def add_file(self, path: Path) -> None:
        """Take over the values of a YAML file.

        Raises:
            UserError: It cannot be read, is not a mapping, or has an unknown key.
        """
        self._add_nested(read_yaml(path), "", f"{path}: ")

    def _add_argument(self, name: str, text: str | None) -> None:
        """`--name text`; `--name+ text` appends to a list."""
        place = f"--{name}"
        appended, name = name.endswith("+"), name.rstrip("+")
        name = self.renamed.get(name, name)
        is_group = any(other.startswith(f"{name}.") for other in self.options)
        if text is None:  # what is true or false needs no value
            for prefix, meant in (("", "true"), ("no_", "false")):
                option = self.options.get(name.removeprefix(prefix))
                if name.startswith(prefix) and option is not None and option.kind is bool:
                    name, text = name.removeprefix(prefix), meant
                    break
        holder = self._holder(name)
        if text is None and (holder is not None or is_group or name == "config"):
            raise UserError(f"{place}: a value is missing")
        if is_group:
            self._add_group(name, text or "", place)
            return
        if holder is None or text is None:
            hint = nearest(name, [*self.options, *_groups(self.options)], "--")
            raise UserError(f"{place}: there is no such option{hint}")
        option = self.options[holder]
        value = _value_of(text, option, place) if name == holder else load_yaml(text, place)
        if appended:
            value = [*_items(self.values.get(name, option.default)), value]
        if name == holder:
            self._set(name, value, place)
        else:
            self._set_inside(holder, name.removeprefix(f"{holder}."), value, place)

    def _add_group(self, name: str, text: str, place: str) -> None:
        """Several options under one name: a YAML file, or a mapping."""
        values = read_yaml(Path(text)) if Path(text).is_file() else load_yaml(text, place)
        if not isinstance(values, Mapping):
            raise UserError(f"{place}: {text!r} is neither a YAML file nor a mapping of options")
        self._add_nested(values, f"{name}.", "--")

    def _add_nested(self, values: Mapping[str, Any], prefix: str, place: str) -> None:
        for key, value in values.items():
            name = self.renamed.get(f"{prefix}{key}", f"{prefix}{key}")
            if name in self.options:
                self._set(name, value, f"{place}{name}")
            elif not any(other.startswith(f"{name}.") for other in self.options):
                known = [*self.options, *_groups(self.options)]
                hint = nearest(name, known, "--" if place == "--" else "")
                raise UserError(f"{place}{name}: there is no such option{hint}")
            elif isinstance(value, Mapping | None):
                self._add_nested(value or {}, f"{name}.", place)
            else:
                raise UserError(f"{place}{name}: {value!r} is not a mapping of options")

    def _holder(self, name: str) -> str | None:
        """The option that is called `name`, or that holds values of its own names, as `name`."""
        while name not in self.options:
            name, _, _ = name.rpartition(".")
            if name in self.options:
                option = self.options[name]
                return name if option.base or option.is_mapping else None
            if not name:
                return None
        return name

    def _set(self, name: str, value: Any, place: str) -> None:
        """Take over a value; what it leaves out of a class, or of classes by name, stays."""
        option, before = self.options[name], self.values.get(name)
        if option.base and option.is_mapping:
            if isinstance(before, Mapping) and isinstance(value, Mapping):
                merged = {k: _merged(before.get(k), v, place) for k, v in value.items()}
                value = {**before, **merged}
        elif option.base and not option.is_list:
            value = _merged(before or option.default, value, place)
        self.values[name], self.places[name] = value, place

    def _set_inside(self, name: str, inner: str, value: Any, place: str) -> None:
        """Change one value of a mapping, or one option of a component or of a dict of them."""
        option = self.options[name]
        before = self.values.get(name, option.default)
        if option.base and not (option.is_list or option.is_mapping) and before is None:
            raise UserError(f"{place}: name the class first: --{name} CLASS")
        if option.base and option.is_list:
            raise UserError(
                f"{place}: {name} is a list; give it whole, as"
                f" --{name} '[{{class_path: CLASS, {inner}: {value}}}]'"
            )
        if not option.base:
            changed = dict(before) if isinstance(before, Mapping) else {}
            changed[inner] = value
        elif option.is_mapping:
            changed = dict(before) if isinstance(before, Mapping) else {}
            key, _, inner = inner.partition(".")
            is_off = value is None and inner in ("", "class_path")
            if key not in changed and (is_off or inner not in ("", "class_path")):
                hint = nearest(key, changed) or f"; name its class first: --{name}.{key} CLASS"
                raise UserError(f"{place}: there is no {key!r} in {name}{hint}")
            changed[key] = None if is_off else _with_option(changed.get(key), inner, value, place)
        else:
            changed = _with_option(before, inner, value, place)
        self.values[name], self.places[name] = changed, place


def pairs(arguments: Sequence[str]) -> list[tuple[str, str | None]]:
    """Name and text of each `--name=text` or `--name text`; `--max-bad` is `max_bad`.

    The text is None where none follows, which is enough for what is true or false.

    Raises:
        UserError: A word that is not an option.
    """
    result: list[tuple[str, str | None]] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not re.match(r"--[A-Za-z]", word):
            raise UserError(f"{word!r} is not an option; options begin with -- (see --help)")
        name, equals, text = word[2:].partition("=")
        follows = bool(words) and not re.match(r"--[A-Za-z]", words[0])
        value = text if equals else words.pop(0) if follows else None
        result.append((name.replace("-", "_"), value))
    return result


def component_mapping(value: Any, place: str) -> dict[str, Any]:
    """`class_path` and `init_args` of a component's value, which may name options directly.

    Raises:
        UserError: It is neither a class path nor a mapping.
    """
    if isinstance(value, Component):
        return value.to_dict()
    if isinstance(value, str):
        return {"class_path": value, "init_args": {}}
    if not isinstance(value, Mapping | None):
        raise UserError(f"{place}: {value!r} is neither a class nor a mapping with class_path")
    value = value or {}
    direct = {k: v for k, v in value.items() if k not in ("class_path", "init_args")}
    init_args = value.get("init_args") or {}
    if not isinstance(init_args, Mapping):
        raise UserError(f"{place}: init_args {init_args!r} is not a mapping of options")
    return {"class_path": value.get("class_path"), "init_args": {**init_args, **direct}}


def _merged(before: Any, value: Any, place: str) -> Any:
    """A component's value over an earlier one: without another class, options add to its own."""
    if value is None or before is None:
        return value
    new, old = component_mapping(value, place), component_mapping(before, place)
    if new["class_path"] not in (None, old["class_path"]) or isinstance(value, str):
        return value
    init_args = _deeply_merged(old["init_args"], new["init_args"])
    return {"class_path": old["class_path"], "init_args": init_args}


def _deeply_merged(before: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(before)
    for name, value in new.items():
        old = merged.get(name)
        if not isinstance(old, Mapping) or not isinstance(value, Mapping):
            merged[name] = value
        elif "class_path" in old:
            merged[name] = _merged(old, value, name)
        else:
            merged[name] = _deeply_merged(old, value)
    return merged


def _with_option(value: Any, name: str, new: Any, place: str) -> dict[str, Any]:
    """A component's value with one option changed; another class starts without options.

    The option may be one of a component inside it, such as `kinds.text.bank`.
    """
    if name in ("", "class_path"):
        return {"class_path": new, "init_args": {}}
    mapping = component_mapping(value, place)
    *parents, last = name.removeprefix("init_args.").split(".")
    mapping["init_args"] = target = dict(mapping["init_args"])
    for depth, parent in enumerate(parents, 1):
        inside = target.get(parent)
        if not isinstance(inside, Mapping | None):
            raise UserError(f"{place}: there is no such option; {parent} holds {inside!r}")
        if inside and "class_path" in inside:
            inner = ".".join([*parents[depth:], last])
            target[parent] = _with_option(inside, inner, new, place)
            return mapping
        target[parent] = target = dict(inside or {})
    target[last] = new
    return mapping


def _groups(options: Iterable[str]) -> set[str]:
    """Names that stand for several options: `optim`, `data.augmentation`."""
    return {
        ".".join(parts[:count])
        for parts in (name.split(".") for name in options)
        for count in range(1, len(parts))
    }


def _items(value: Any) -> list[Any]:
    """An earlier value to which another is appended."""
    if value is None or value is dataclasses.MISSING:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _value_of(text: str, option: Option, place: str) -> Any:
    """What a command-line text stands for, before its type is checked."""
    kinds = option.alternatives
    if text.strip() == "null":
        return None
    words = choices(option.kind)
    if text in words or (words and typing.get_origin(option.kind) is typing.Literal):
        return int(text) if text.isdecimal() else text  # as YAML, `no` would be False
    is_structured = text.lstrip().startswith(("[", "{"))
    if (str in kinds or Path in kinds) and not (is_structured and (option.is_list)):
        return text
    return load_yaml(text, place)
