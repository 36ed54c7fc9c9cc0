"""YAML as options are written in it, in files and on command lines."""

import re
from pathlib import Path
from typing import Any

import yaml

from data_prep.common.errors import UserError
from data_prep.common.messages import one_line


class Loader(yaml.SafeLoader):
    """YAML of options: 1e-4 is a number, and a date is text."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?\d[\d_]*(?:\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        UserError: It cannot be read, is not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise UserError(f"--config: {path} cannot be read ({reason})") from None
    values = load_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path}: is not a YAML mapping of options")
    return values


def load_yaml(text: str, place: str) -> Any:
    """Parse YAML; as in jsonargparse, 1e-4 is a number.

    Raises:
        UserError: It is not YAML.
    """
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None and "\n" in text else ""
        problem = getattr(error, "problem", None) or one_line(error)
        raise UserError(f"{place}{line}: is not YAML ({problem})") from None


def as_list(value: Any, place: str) -> list[Any]:
    """A list from one item, or from several with commas between them.

    Raises:
        UserError: An item is not YAML.
    """
    if isinstance(value, list | tuple):
        return list(value)
    if not isinstance(value, str):
        return [value]
    return [load_yaml(part, place) for part in value.split(",")]
