"""The text of `--help`: every option with its type and default, those of classes too."""

import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

from data_prep.common.components import SIMPLE, Component, known_classes
from data_prep.common.given import Configs, Given, Option
from data_prep.common.messages import describe
from data_prep.common.signatures import Parameter, read_parameters

WIDTH = 79
INDENT = " " * 24


def print_help(configs: Configs, program: str, summary: str, epilog: str = "") -> None:
    """Print the help of a command.

    Args:
        configs: Dataclasses of its options; empty if it takes words only.
        program: As it is typed.
        summary: One line.
        epilog: Text below the options.
    """
    if not configs:
        print(f"usage: {program} [NAME ...]\n\n{summary}")
        return
    lines = [f"usage: {program} [--config FILE.yaml] [--OPTION VALUE ...]"]
    for config in configs:
        lines += ["", *textwrap.wrap(" ".join((config.__doc__ or "").split()), WIDTH)]
    lines += ["", "options:", *_entry("-h, --help", "Show this text and exit.")]
    lines += _entry(
        "--config FILE.yaml",
        "Read any of these options from a file; what stands later on the command line replaces it.",
    )
    options = Given(configs).options
    for config in configs:
        lines += _field_lines(config, options, "")
    for name, option in options.items():
        # an item of a list has no name of its own
        prefix = f"--{name}.NAME." if option.is_mapping else f"--{name}."
        prefix = "" if option.is_list else prefix
        default = option.default.class_path if isinstance(option.default, Component) else None
        known = known_classes(option.base).values() if option.base else ()
        for path in sorted(known, key=lambda path: path != default):
            which = "the default of" if path == default else "a class for"
            lines += _class_lines(path, f"Options of {path}, {which} --{name}:", prefix)
    print("\n".join([*lines, epilog]).rstrip())


def _field_lines(config: type[Any], options: Mapping[str, Option], prefix: str) -> list[str]:
    """Options of a dataclass, and below them those of the dataclasses in it."""
    parameters = read_parameters(f"{config.__module__}.{config.__qualname__}") or {}
    hints = get_type_hints(config)
    lines: list[str] = []
    nested: list[str] = []
    for field in fields(config):
        name, kind = f"{prefix}{field.name}", hints[field.name]
        if is_dataclass(kind) and isinstance(kind, type):
            nested += ["", f"{' '.join((kind.__doc__ or name).split()).removesuffix('.')}:"]
            nested += _field_lines(kind, options, f"{name}.")
            continue
        option = options[name]
        kind_words = describe(option.kind)
        if option.base:
            kind_words = kind_words.replace("Components", "classes").replace("Component", "a class")
        default = "required" if option.default is MISSING else f"default: {_shown(option.default)}"
        text = parameters[field.name].help if field.name in parameters else ""
        lines += _entry(f"--{name}", f"{text} ({kind_words}; {default})")
    return lines + nested


def _class_lines(class_path: str, heading: str, prefix: str) -> list[str]:
    lines = _parameter_lines(read_parameters(class_path) or {}, prefix)
    return ["", heading, *(lines or ["  (none)"])]


def _parameter_lines(parameters: Mapping[str, Parameter], prefix: str) -> list[str]:
    lines: list[str] = []
    for name, parameter in parameters.items():
        if parameter.nested:
            lines += _parameter_lines(parameter.nested, f"{prefix}{name}.")
        elif not parameter.required:
            kind = SIMPLE.get(parameter.annotation)
            words = parameter.annotation if kind is None else describe(kind)
            text = f"{parameter.help} ({words}; default: {_shown(parameter.default)})"
            lines += _entry(f"{prefix}{name}", text)
    return lines


def _shown(value: Any) -> str:
    """A default as it is typed."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_shown(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return '""' if value == "" else str(value)


def _entry(name: str, text: str) -> list[str]:
    first = f"  {name}"
    rest = textwrap.wrap(text.strip(), WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)
    if len(first) + 2 > len(INDENT):
        return [first, *rest]
    return [f"{first:<{len(INDENT)}}{rest[0].lstrip()}", *rest[1:]]
