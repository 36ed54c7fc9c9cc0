"""Figures that a command measured, kept in a Markdown document: one section per machine."""

import datetime
import platform
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_prep.common.files import write_text

OPENING = """# Measured

Each section was written by the command that it names, and is replaced when that command runs again
on a machine of the same name.
"""


class Results:
    """Prints figures as they come, and keeps them in a document at the end.

    Each choice of options has a section of its own, so that a trial does not replace the figures
    of the defaults.

    Args:
        title: What was measured, and on what.
        program: The command, as it is typed.
        config: Its options, a flat dataclass; its `results` is the document, or None.
        packages: Distributions whose versions matter.
    """

    def __init__(self, title: str, program: str, config: Any, packages: Sequence[str]) -> None:
        options = given_options(config)
        command = f"{program} {options}".rstrip()
        self.path: Path | None = config.results
        self.heading = f"{title}, with {options}" if options else title
        versions = ", ".join(f"{name} {version(name)}" for name in packages)
        date = datetime.datetime.now(datetime.UTC).date()
        self.lines: list[str] = []
        self.add(
            f"`{command}`, {date}, {platform.system()}, Python {platform.python_version()}, "
            f"{versions}."
        )

    def add(self, text: str) -> None:
        """A paragraph."""
        self._print(["", text])

    def table(self, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table; each row is printed when `rows` yields it."""
        self._print(["", *markdown_table(header, [])])
        for row in rows:
            self._print(markdown_table(header, [row])[2:])

    def save(self) -> None:
        """Replace this section of the document, or add it at the end."""
        if self.path is None:
            return
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else OPENING
        opening, *parts = text.split("\n## ")
        sections = {part.partition("\n")[0]: part.strip("\n") for part in parts}
        sections[self.heading] = "\n".join([self.heading, *self.lines])
        parts = [opening.strip("\n"), *(f"## {section}" for section in sections.values())]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, "\n\n".join(parts) + "\n")
        print(f"\nresults: {self.path}")

    def _print(self, lines: list[str]) -> None:
        self.lines += lines
        print("\n".join(lines), flush=True)


def given_options(config: Any) -> str:
    """The words that give a flat dataclass of options, without those that have their default.

    Nor is `results` among them, which decides no figure.
    """
    words: list[str] = []
    for field in fields(config):
        value, name = getattr(config, field.name), f"--{field.name}"
        if field.name != "results" and value != field.default:
            if isinstance(value, list | tuple):
                value = f"[{', '.join(map(str, value))}]"
            words += [name, "null" if value is None else str(value)]
    return shlex.join(words)


def processor() -> str:
    """Name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def markdown_table(header: Sequence[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (header, *rows)]
    return [lines[0], f"|{'---|' * len(header)}", *lines[1:]]


def table_cell(text: str) -> str:
    """Text that stays within its cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")
