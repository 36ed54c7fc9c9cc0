"""Commands that documents, scripts and recipes print, and the SAM that they are given."""

import re
from functools import partial
from pathlib import Path

from segment_anything.build_sam import _build_sam

small_sam = partial(_build_sam, 192, 12, 3, [2, 5, 8, 11])
"""Builds a SAM with a vit_t, which stands in for `sam_model_registry["vit_b"]`."""


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
