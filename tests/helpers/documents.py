"""Commands that documents, scripts and recipes print."""

import re
from pathlib import Path


def shell_commands(text: str) -> list[str]:
    """Commands of shell code, continued lines joined, comments dropped."""
    lines = (line.split(" # ")[0].strip() for line in text.replace("\\\n", " ").splitlines())
    return [" ".join(line.split()) for line in lines if line and not line.startswith("#")]


def commands_of(path: Path) -> list[str]:
    """The commands that a document shows in sh blocks, or a script or recipe in its header."""
    text = path.read_text()
    if path.suffix == ".md":
        return shell_commands("\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)))
    shown = [line[4:] for line in text.splitlines() if line.startswith("#   ")]
    return shell_commands("\n".join(shown))
