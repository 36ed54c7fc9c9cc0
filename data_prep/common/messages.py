"""Words for what is wrong with an option: one line, with the nearest right name."""

import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union

PLAIN = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    type(None): "null",
}
NUMBERS: dict[Any, str] = {
    **{int: "whole numbers", float: "numbers", str: "strings", Path: "paths"},
    Any: "values",
}


def one_line(error: object) -> str:
    """What an error says, on one line; its class's name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean X?` for the known name most like `name`, or nothing.

    Args:
        prefix: Written before the name, such as `--`.
    """
    candidates = list(known)
    found = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    if not found:  # `lr` for `optim.lr`
        by_last = {candidate.rpartition(".")[2]: candidate for candidate in candidates}
        last = difflib.get_close_matches(name.rpartition(".")[2], list(by_last), n=1, cutoff=0.7)
        found = [by_last[word] for word in last]
    return f"; did you mean {prefix}{found[0]}?" if found else ""


def describe(kind: Any) -> str:
    """A type in words, to follow "expected"."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind in PLAIN:
        return PLAIN[kind]
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (Union, types.UnionType):
        return " or ".join(describe(part) for part in parts)
    if origin is tuple and parts[-1] is not Ellipsis:
        return f"a list of {len(parts)} {NUMBERS.get(parts[0], 'values')}"
    if origin in (list, tuple):
        each = typing.get_origin(parts[0]) is Literal
        return f"a list of {'any of ' if each else ''}{_several(parts[0])}"
    if origin is dict:
        return f"a mapping from names to {_several(parts[1])}"
    return getattr(kind, "__name__", str(kind))


def _several(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return ", ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) in (list, tuple):
        return f"lists of {_several(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) in (Union, types.UnionType):
        return " or ".join(map(_several, typing.get_args(kind)))
    return NUMBERS.get(kind, f"{getattr(kind, '__name__', kind)}s")


def is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of a plain type, a union of them or a list of them, or a mapping to them.

    A whole number is a number too.
    """
    if typing.get_origin(kind) in (list, tuple):
        part = typing.get_args(kind)[0]
        return isinstance(value, list | tuple) and all(is_of(item, part) for item in value)
    if typing.get_origin(kind) is dict:
        part = typing.get_args(kind)[1]
        return isinstance(value, Mapping) and all(is_of(item, part) for item in value.values())
    allowed = typing.get_args(kind) or (kind,)
    if isinstance(value, bool):
        return bool in allowed
    return isinstance(value, allowed) or (isinstance(value, int) and float in allowed)


def choices(kind: Any) -> list[str]:
    """The words that a type allows, also inside lists and unions; none if it allows any."""
    if typing.get_origin(kind) is Literal:
        return [str(choice) for choice in typing.get_args(kind)]
    return [word for part in typing.get_args(kind) for word in choices(part)]


def rejected_value(message: str, given: Mapping[str, Any], prefix: str) -> str:
    """One line for a value that jsonargparse rejected.

    Args:
        message: What jsonargparse said.
        given: Values by name.
        prefix: Of the name, such as the option that the values are for.
    """
    key = re.search(r'(?:Parser key|Key|Option) ["\']([\w.]+)["\']', message)
    if key is None:
        return f"{prefix}: {one_line(message)}"
    expected = re.search(r"[Ee]xpected an? (?:<class '([\w.]+)'>|(.+?))(?:\. |$)", message, re.M)
    wanted = f"; expected {_plain(expected[1] or expected[2])}" if expected else ""
    value = given
    for part in key[1].split("."):
        value = value.get(part, "") if isinstance(value, Mapping) else ""
    return f"{prefix}.{key[1]}: {value!r} is not accepted{wanted}"


def _plain(name: str) -> str:
    kinds = {kind.__name__: words for kind, words in PLAIN.items()}
    return kinds.get(name, name.replace("typing.", ""))
