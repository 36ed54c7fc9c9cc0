"""From the values that a user gave to a config: completed, checked and written as YAML."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_origin

from jsonargparse import ArgumentParser

from data_prep.common.components import Component
from data_prep.common.errors import UserError
from data_prep.common.given import Configs, Given, Option, component_mapping
from data_prep.common.messages import choices, describe, nearest, one_line
from data_prep.common.yaml_text import as_list, load_yaml

Config = TypeVar("Config")


def parse(config_class: type[Config], program: str, arguments: Sequence[str]) -> tuple[Config, str]:
    """Parse a command line into `config_class`.

    Args:
        program: Name of the program for its help.
        arguments: The words after it.

    Returns:
        The config, and its resolved YAML to be written beside the output.

    Raises:
        UserError: Says in one line what is wrong, where, and what is right.
    """
    (config,), resolved = parse_all((config_class,), program, arguments)
    return config, resolved


def parse_file(config_class: type[Config], path: Path) -> tuple[Config, str]:
    """Parse a YAML file such as the `config.yaml` of a run; what it lacks has its default.

    Raises:
        UserError: As `parse`.
    """
    given = Given((config_class,))
    given.add_file(path)
    (config,), resolved = _resolve((config_class,), path.name, given)
    return config, resolved


def parse_all(
    configs: Configs, program: str, arguments: Sequence[str]
) -> tuple[tuple[Any, ...], str]:
    """As `parse`, for several dataclasses whose fields together are the options."""
    given = Given(configs)
    given.add_arguments(arguments)
    return _resolve(configs, program, given)


def _resolve(configs: Configs, program: str, given: Given) -> tuple[tuple[Any, ...], str]:
    values = _nested(given)
    missing = [
        f"--{name}"
        for name, option in given.options.items()
        if option.default is MISSING and given.values.get(name) is None
    ]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"{' and '.join(missing)} {verb} missing; see --help")
    parser = build_parser(configs, program)
    try:
        parsed = parser.parse_object(values)
    except UserError:
        raise
    except Exception as error:  # jsonargparse reports a rejected value in several ways
        raise UserError(_rejection(str(error), given)) from None
    resolved = parser.dump(parsed, skip_unset=False)
    instances = parser.instantiate(parsed)
    made = (
        config(**{field.name: instances[field.name] for field in fields(config)})
        for config in configs
    )
    return tuple(made), resolved


@lru_cache(maxsize=64)
def build_parser(configs: Configs, program: str) -> ArgumentParser:
    """The jsonargparse parser of the fields of `configs`; it is asked for again for each run."""
    parser = ArgumentParser(
        prog=program,
        description="\n\n".join(config.__doc__ or "" for config in configs),
        usage=f"{program} [--config FILE.yaml] [--OPTION VALUE ...]",
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    for config in configs:
        parser.add_class_arguments(config, as_group=False)
    return parser


def _nested(given: Given) -> dict[str, Any]:
    """The given values, completed, as nested mappings."""
    values: dict[str, Any] = {}
    for name, value in given.values.items():
        try:
            completed = _completed(value, given.options[name], name)
        except ValueError as error:
            raise UserError(f"{given.places[name]}: {one_line(error)}") from None
        except UserError as error:  # of a component, which begins with the option's name
            where = given.places[name]
            start = "--" if where.startswith("--") else where.removesuffix(name)
            raise UserError(f"{start}{error}") from None
        *parents, last = name.split(".")
        group = values
        for parent in parents:
            group = group.setdefault(parent, {})
        group[last] = completed
    return values


def _completed(value: Any, option: Option, name: str) -> Any:
    """A value in the form that jsonargparse checks: a list for a list, components complete.

    Raises:
        ValueError: A component that is not one.
    """
    if value is None:
        if type(None) not in option.alternatives:
            raise ValueError(f"null is not {'a class' if option.base else describe(option.kind)}")
        return None
    if not option.base:
        if isinstance(value, bool) and bool not in option.alternatives:
            value = spelt(value, choices(option.kind))
        return as_list(value, name) if _is_lone_item(value, option) else value
    if option.is_mapping:
        if not isinstance(value, Mapping):
            raise ValueError(f"expected a mapping from names to classes, not {value!r}")
        kept = {key: item for key, item in value.items() if item is not None}
        return {key: _component(item, option, f"{name}.{key}") for key, item in kept.items()}
    if option.is_list:
        return [_component(item, option, name) for item in as_list(value, name)]
    return _component(value, option, name)


def _is_lone_item(value: Any, option: Option) -> bool:
    """Whether a list is wanted, and one item, or several with commas, are given."""
    if not option.is_list or str in option.alternatives or isinstance(value, list | tuple | dict):
        return False
    literals = [kind for kind in option.alternatives if get_origin(kind) is Literal]
    return not any(str(value) in choices(kind) for kind in literals)


def spelt(value: bool, words: list[str]) -> bool | str:
    """The word that YAML read as a truth value: of `no` and `bf16`, False is `no`."""
    meant = [word for word in words if load_yaml(word, "") is value]
    return meant[0] if len(meant) == 1 else value


def _component(value: Any, option: Option, name: str) -> Component:
    mapping = component_mapping(value, name)
    if mapping["class_path"] is None and isinstance(option.default, Component):
        mapping["class_path"] = option.default.class_path
    if mapping["class_path"] is None:
        given = ", ".join(mapping["init_args"]) or "nothing"
        raise ValueError(f"names no class (class_path); it has {given}")
    return Component.from_value(mapping).checked(option.base, name)


def _rejection(message: str, given: Given) -> str:
    """One line for a value that jsonargparse rejected."""
    key = re.search(r'(?:Parser key|Key) ["\']([\w.]+)["\']', message)
    if key is None or key[1] not in given.options:
        return one_line(message)
    name = key[1]
    kind, value = given.options[name].kind, given.values.get(name)
    hint = nearest(str(value), choices(kind))
    shown = repr(value) if isinstance(value, str) else value
    return f"{given.places.get(name, name)}: {shown} is not {describe(kind)}{hint}"
