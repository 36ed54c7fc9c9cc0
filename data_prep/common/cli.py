"""Command lines from dataclasses: `--help`, `--config FILE`, dotted overrides, one-line errors.

A command is a function of one dataclass. Its options are the dataclass's fields, its help is their
docstrings, and an unknown key is refused by name.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from data_prep.common.errors import UserError
from data_prep.common.files import write_text

Config = TypeVar("Config")

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def config_parser(config_class: type[Config], program: str) -> ArgumentParser:
    """A parser whose options are the fields of `config_class`."""
    parser = ArgumentParser(prog=program, description=config_class.__doc__)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_class_arguments(config_class)
    return parser


def parse(
    config_class: type[Config], program: str, arguments: Sequence[str] | None = None
) -> tuple[Config, str]:
    """Parse a command line (default `sys.argv`) into `config_class`.

    Returns:
        The instantiated config, and its resolved YAML to be written beside the output.
    """
    parser = config_parser(config_class, program)
    parsed = parser.parse_args(_underscored(arguments))
    return _instantiate(parser, config_class, parsed)


def _underscored(arguments: Sequence[str] | None) -> list[str]:
    """Command-line arguments with `--max-bad` written `--max_bad`, as the field is called."""
    result = []
    for argument in sys.argv[1:] if arguments is None else arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
        result.append(name + equals + value)
    return result


def _instantiate(
    parser: ArgumentParser, config_class: type[Config], parsed: Namespace
) -> tuple[Config, str]:
    resolved = parser.dump(parsed, skip_none=False)
    values = parser.instantiate(parsed)
    config = config_class(**{field.name: values[field.name] for field in fields(config_class)})
    return config, resolved


def write_resolved_config(folder: Path, resolved: str) -> None:
    """Keep the resolved options of a command beside its output, as `config.yaml`."""
    write_text(folder / "config.yaml", resolved)


def run(main: Callable[[], Any]) -> None:
    """Call `main`; a `UserError` becomes one line on stderr and exit status 2."""
    try:
        main()
    except UserError as error:
        # One that a loader's worker raised comes with the worker's traceback before its text.
        text = str(error).rpartition("data_prep.common.errors.UserError: ")[2]
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        raise SystemExit(2) from None


def run_command(
    program: str, config_class: type[Config], function: Callable[[Config, str], Any]
) -> None:
    """Parse `sys.argv` into `config_class` and call `function(config, resolved YAML)`."""
    run(lambda: function(*parse(config_class, program)))


def run_commands(
    program: str,
    commands: Mapping[str, tuple[type[Any], Callable[[Any, str], Any]]],
    arguments: Sequence[str] | None = None,
) -> None:
    """Run one of several subcommands: name -> (config dataclass, function(config, resolved))."""
    parser = ArgumentParser(prog=program)
    subcommands = parser.add_subcommands(dest="command")
    parsers = {}
    for name, (config_class, function) in commands.items():
        parsers[name] = config_parser(config_class, f"{program} {name}")
        subcommands.add_subcommand(
            name, parsers[name], help=(function.__doc__ or "").split("\n")[0]
        )
    parsed = parser.parse_args(_underscored(arguments))
    name = parsed["command"]
    config_class, function = commands[name]
    run(lambda: function(*_instantiate(parsers[name], config_class, parsed[name])))
