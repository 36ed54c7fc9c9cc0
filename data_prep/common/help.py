"""The text of `--help`: every option with its type and default, those of classes too."""

import textwrap
from collections.abc import Mapping

from data_prep.common.components import Component, known_classes
from data_prep.common.given import Configs, Given
from data_prep.common.parsing import build_parser
from data_prep.common.signatures import Parameter, read_parameters

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
    parser = build_parser(configs, program)
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="YAML file with any of the options below"
    )
    lines: list[str] = []
    for name, option in Given(configs).options.items():
        if isinstance(option.default, Component):
            path = option.default.class_path
            lines += ["", f"Options of {path}, the default of --{name}:"]
            lines += _option_lines(read_parameters(path) or {}, f"--{name}.")
        elif option.base:
            # an item of a list has no name of its own
            prefix = f"--{name}.NAME." if option.is_mapping else f"--{name}."
            prefix = "" if option.is_list else prefix
            for path in known_classes(option.base).values():
                lines += ["", f"Options of {path}, a class for --{name}:"]
                lines += _option_lines(read_parameters(path) or {}, prefix)
    print("\n".join([parser.format_help().rstrip(), *lines, epilog]).rstrip())


def _option_lines(parameters: Mapping[str, Parameter], prefix: str) -> list[str]:
    lines: list[str] = []
    for name, parameter in parameters.items():
        if parameter.nested:
            lines += _option_lines(parameter.nested, f"{prefix}{name}.")
        elif not parameter.required:
            default = "null" if parameter.default is None else parameter.default
            text = f"{parameter.help} (type: {parameter.annotation}, default: {default})".strip()
            lines.append(f"  {prefix}{name}")
            lines += textwrap.wrap(text, 78, initial_indent=INDENT, subsequent_indent=INDENT)
    return lines
