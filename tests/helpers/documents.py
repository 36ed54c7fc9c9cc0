"""Commands that documents, scripts and recipes print."""

import re
from pathlib import Path


def shell_commands(text: str) -> list[str]:
    """Commands of shell code, continued lines joined as a shell joins them, comments dropped.

    Inside quotes a line goes on without a backslash; one that is there would stay.
    """
    lines = [line.split(" # ")[0].rstrip() for line in text.splitlines()]
    code = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    code = re.sub(r"'[^']*'", lambda quoted: quoted[0].replace("\n", " "), code)
    lines = code.replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip()]


def commands_of(path: Path) -> list[str]:
    """The commands that a document shows in sh blocks, or a script or recipe in its header."""
    text = path.read_text()
    if path.suffix == ".md":
        return shell_commands("\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)))
    shown = [line[4:] for line in text.splitlines() if line.startswith("#   ")]
    return shell_commands("\n".join(shown))
