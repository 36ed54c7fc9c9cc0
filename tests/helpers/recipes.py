"""Recipes: the comment at their top, and the command in it."""

import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]


def recipes_of(folder: str) -> list[str]:
    """Recipes below a folder of the repository, as paths in it."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.yaml"))


def header_of(recipe: str) -> str:
    """The lines of the comment at the top."""
    lines = []
    for line in (ROOT / recipe).read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line)
    return "\n".join(lines)


def options_of_command(recipe: str) -> list[str]:
    """What the command in the header gives to its script; checks launcher, script and recipe."""
    shown = [line[4:] for line in header_of(recipe).splitlines() if line.startswith("#   ")]
    words = shlex.split(" ".join(shown).replace("\\ ", " "))
    assert words[:3] == ["accelerate", "launch", "--config_file"] and (ROOT / words[3]).is_file()
    stage = {"baselines": "finetune"}.get(folder := Path(recipe).parts[1], folder)
    assert words[4] == f"{stage}/train.py" and (ROOT / words[4]).is_file()
    assert words[5:7] == ["--config", recipe]
    return words[5:]
