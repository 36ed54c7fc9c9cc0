"""Programs and their commands: options from dataclasses, and every mistake in one line.

A command is a function of one or more config dataclasses. It is named, not imported, so that
`--help` and refused options need not wait for PyTorch.
"""

import atexit
import gc
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Any

from data_prep.common.cores import share_cores
from data_prep.common.errors import UserError
from data_prep.common.files import write_text
from data_prep.common.help import print_help
from data_prep.common.messages import nearest
from data_prep.common.parsing import Configs, parse_all

KEYBOARD_INTERRUPT = 130
"""Exit status after Ctrl-C, as shells have it."""


@dataclass(frozen=True)
class Command:
    """One command of a program."""

    summary: str
    """One line for `--help`."""
    function: str
    """`module:name` of a function of the configs and of their resolved YAML."""
    configs: Configs | str = ()
    """Dataclasses of its options, or `module:name` of a function that finds them from the
    arguments. If there are none, the command takes words."""
    epilog: str | None = None
    """`module:name` of a function from the arguments to the text below the options in `--help`."""
    words: str | None = None
    """The option, a list, whose items may stand before all options, without its name."""

    def find_configs(self, arguments: Sequence[str]) -> Configs:
        """Dataclasses of the options of this command line."""
        return load(self.configs)(arguments) if isinstance(self.configs, str) else self.configs

    def named(self, arguments: Sequence[str]) -> list[str]:
        """The arguments, with the words that stand before all options under the name of theirs."""
        given = list(takewhile(lambda word: not word.startswith("-"), arguments))
        if self.words is None or not given:
            return list(arguments)
        return [f"--{self.words}={json.dumps(given, ensure_ascii=False)}", *arguments[len(given) :]]


def run_program(
    program: str, commands: Mapping[str, Command], arguments: Sequence[str] | None = None
) -> None:
    """Run one of several commands.

    Args:
        program: As it is typed, such as `python -m data_prep`.
        commands: By name.
        arguments: The words after it; by default those of this process.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    with one_line_errors():
        if words[:1] in (["-h"], ["--help"]):
            print(_overview(program, commands))
        elif words[:1] == ["--version"]:
            _print_version()
        elif not words or words[0] not in commands:
            wrong = f"{words[0]!r} is not a command" if words else "no command is given"
            hint = nearest(words[0], commands) if words else ""
            raise UserError(wrong + (hint or f"; there are {', '.join(commands)}"))
        else:
            _run(f"{program} {words[0]}", commands[words[0]], words[1:], arguments is None)


def run_command(program: str, command: Command, arguments: Sequence[str] | None = None) -> None:
    """Run a program that is one command.

    Args:
        arguments: The words after it; by default those of this process.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    with one_line_errors():
        if words[:1] == ["--version"]:
            _print_version()
        else:
            _run(program, command, words, arguments is None)


@contextmanager
def _imports_stay() -> Iterator[None]:
    """What is imported inside is not searched for garbage, now or later: it stays to the end.

    The search took a fifth of the time of a short command.
    """
    searched = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
        atexit.register(_unfreeze)
    finally:
        if searched:
            gc.enable()


def _unfreeze() -> None:
    """Leave what was imported to the end of Python; Triton lists what is not let go as leaks."""
    if "triton" in sys.modules:
        gc.unfreeze()


def _run(program: str, command: Command, words: list[str], is_process: bool) -> None:
    """Run a command, in a process that does nothing else or inside another program."""
    if str(Path.cwd()) not in sys.path:  # a recipe may name classes of the working folder
        sys.path.append(str(Path.cwd()))
    if {"-h", "--help"} & {*words}:
        others = [word for word in words if word not in ("-h", "--help")]
        epilog = load(command.epilog)(others) if command.epilog else ""
        usage = f"{program} [{command.words.upper()} ...]" if command.words else program
        print_help(command.find_configs(others), usage, command.summary, epilog)
        return
    with _imports_stay() if is_process else nullcontext():
        values = _values(program, command, words)
        function = load(command.function)
    function(*values)


def _values(program: str, command: Command, words: list[str]) -> tuple[Any, ...]:
    """What a command's function is called with."""
    if not command.configs:
        return (words,)
    words = command.named(words)
    configs, resolved = parse_all(command.find_configs(words), program, words)
    for config in configs:
        if hasattr(config, "threads"):
            if config.threads is not None and config.threads < 1:
                raise UserError(f"--threads: {config.threads} is not 1 or more")
            share_cores(config.threads)  # before anything imports PyTorch
    return *configs, resolved


def load(name: str) -> Callable[..., Any]:
    """Import what `module:name` stands for."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """A `UserError` inside becomes one line on stderr and exit status 2.

    So does a file or folder that cannot be read or written.
    """
    try:
        yield
    except UserError as error:
        # One that a loader's worker raised comes with the worker's traceback before its text.
        name = f"{type(error).__module__}.{type(error).__qualname__}: "
        text = str(error).rpartition(name)[2]
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of our output, such as `head`, wants no more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        raise SystemExit(KEYBOARD_INTERRUPT) from None


def write_resolved_config(folder: Path, resolved: str) -> None:
    """Keep the resolved options of a command beside its output, as `config.yaml`."""
    write_text(folder / "config.yaml", resolved)


def _overview(program: str, commands: Mapping[str, Command]) -> str:
    width = max(map(len, commands))
    lines = [f"usage: {program} COMMAND [--config FILE.yaml] [--OPTION VALUE ...]", "", "commands:"]
    lines += [f"  {name:<{width}}  {command.summary}" for name, command in commands.items()]
    lines += ["", f"`{program} COMMAND --help` lists the options of a command with their defaults."]
    return "\n".join(lines)


def _print_version() -> None:
    print(f"samaritan {version('samaritan')}")
