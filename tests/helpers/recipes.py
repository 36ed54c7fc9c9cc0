"""Recipes: the comment at their top, and the command in it."""

import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]


def recipes_of(folder: str, script: str = "") -> list[str]:
    """Recipes below a folder of the repository whose header names a script, as paths in it."""
    found = (path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.yaml"))
    return sorted(recipe for recipe in found if script in header_of(recipe))


def header_of(recipe: str) -> str:
    """The lines of the comment at the top."""
    lines = []
    for line in (ROOT / recipe).read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line)
    return "\n".join(lines)


def command_of(recipe: str) -> list[str]:
    """The words of the command in the header."""
    shown = [line[4:] for line in header_of(recipe).splitlines() if line.startswith("#   ")]
    return shlex.split(" ".join(shown).replace("\\ ", " "))


def options_of_command(recipe: str) -> list[str]:
    """What the command in the header gives to its script; checks launcher, script and recipe."""
    words = command_of(recipe)
    assert words[:3] == ["accelerate", "launch", "--config_file"] and (ROOT / words[3]).is_file()
    stage = Path(recipe).parts[1].replace("baselines", "finetune")
    assert words[4] == f"{stage}/train.py" and (ROOT / words[4]).is_file()
    assert words[5:7] == ["--config", recipe]
    return words[5:]
