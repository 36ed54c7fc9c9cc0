"""Options of a class, read from its source code without importing it.

Options are the parameters of `__init__`, or the fields of a dataclass. Their help is the `Args`
section of the class's docstring, or the string below a field.
"""

import ast
import importlib.util
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Parameter:
    """One option of a class."""

    annotation: str
    """Source text of its type."""
    required: bool
    """It has no default, so the program must give it."""
    default: Any = None
    """Its value if `is_plain`, else its source text."""
    is_plain: bool = False
    """The default is a number, a string, a truth value, None, or a list, tuple or dict of these."""
    help: str = ""
    nested: dict[str, "Parameter"] = field(default_factory=dict)
    """Fields of the parameter's own type, if that is a dataclass."""


@lru_cache
def find_class(class_path: str) -> tuple[str, ast.ClassDef] | None:
    """The module and definition of a class, also of one that a package re-exports.

    None if its source cannot be found.
    """
    module, _, name = class_path.rpartition(".")
    tree = _module_tree(module) if module else None
    for node in tree.body if tree is not None else ():
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return find_class(f"{node.module}.{alias.name}")
    return None


def public_path(class_path: str) -> str:
    """The one path of a class that has several: that of the package which re-exports it."""
    found = find_class(class_path)
    if found is None:
        return class_path
    module, definition = found
    shorter = f"{module.rpartition('.')[0]}.{definition.name}"
    return shorter if find_class(shorter) == found else f"{module}.{definition.name}"


def names_in(module: str) -> list[str]:
    """Names of the classes that a module defines or imports; none if its source is not found."""
    tree = _module_tree(module) if module else None
    names: list[str] = []
    for node in tree.body if tree is not None else ():
        if isinstance(node, ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.ImportFrom):
            names += [alias.asname or alias.name for alias in node.names]
    return names


def is_package(module: str) -> bool:
    """Whether a module is a package."""
    path = _module_file(module)
    return path is not None and path.name == "__init__.py"


@lru_cache
def read_parameters(class_path: str) -> dict[str, Parameter] | None:
    """Options of a class by name, inherited ones first; None if its source cannot be found."""
    found = find_class(class_path)
    if found is None:
        return None
    module, definition = found
    for node in definition.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return _of_init(node, module, ast.get_docstring(definition) or "")
    inherited: dict[str, Parameter] = {}
    for base in definition.bases:
        path = _resolve(ast.unparse(base), module)
        inherited |= (read_parameters(path) if path else None) or {}
    if any("dataclass" in ast.unparse(decorator) for decorator in definition.decorator_list):
        return inherited | _of_fields(definition, module)
    return inherited


def subclasses_in(package: str, base: str) -> dict[str, str]:
    """Class path by bare name of the public classes of a package that derive from `base`.

    Args:
        package: Dotted name; its modules are searched, not its subpackages.
        base: Bare name of a class. Classes that derive from a found one count too.
    """
    definitions: dict[str, tuple[str, set[str]]] = {}
    for module in (package, *_modules_of(package)):
        tree = _module_tree(module)
        for node in tree.body if tree is not None else ():
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                bases = {ast.unparse(parent).split(".")[-1] for parent in node.bases}
                definitions[node.name] = (f"{module}.{node.name}", bases)
    found: dict[str, str] = {}
    wanted = {base}
    while new := {
        name for name, (_, bases) in definitions.items() if bases & wanted and name not in wanted
    }:
        wanted |= new
        found |= {name: definitions[name][0] for name in new}
    return dict(sorted(found.items()))


def _of_init(node: ast.FunctionDef, module: str, docstring: str) -> dict[str, Parameter]:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args][1:]
    missing = [None] * (len(positional) - len(arguments.defaults))
    pairs = [
        *zip(positional, [*missing, *arguments.defaults], strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    helps = _args_section(docstring)
    return {
        argument.arg: _parameter(
            argument.annotation, default, default is None, helps.get(argument.arg, ""), module
        )
        for argument, default in pairs
    }


def _of_fields(definition: ast.ClassDef, module: str) -> dict[str, Parameter]:
    parameters = {}
    body = definition.body
    for position, node in enumerate(body):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if "ClassVar" in ast.unparse(node.annotation):
            continue
        below = body[position + 1] if position + 1 < len(body) else None
        text = ""
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            text = " ".join(str(below.value.value).split())
        parameters[node.target.id] = _parameter(
            node.annotation, node.value, node.value is None, text, module
        )
    return parameters


def _parameter(
    annotation: ast.expr | None,
    default: ast.expr | None,
    required: bool,
    text: str,
    module: str,
) -> Parameter:
    kind = ast.unparse(annotation) if annotation is not None else "Any"
    path = _resolve(kind, module)
    nested = (read_parameters(path) if path is not None and _is_dataclass(path) else None) or {}
    if default is None:
        return Parameter(kind, required, help=text, nested=nested)
    if ast.unparse(default) == "field(default_factory=dict)":
        return Parameter(kind, required, {}, True, text, nested)
    try:
        return Parameter(kind, required, ast.literal_eval(default), True, text, nested)
    except ValueError:
        return Parameter(kind, required, ast.unparse(default), False, text, nested)


def _is_dataclass(class_path: str) -> bool:
    found = find_class(class_path)
    decorators = found[1].decorator_list if found is not None else []
    return any("dataclass" in ast.unparse(decorator) for decorator in decorators)


def _args_section(docstring: str) -> dict[str, str]:
    """Help by name from the `Args:` section of a docstring."""
    section = re.search(r"^Args:\n(.*?)(?:\n\S|\Z)", docstring, re.MULTILINE | re.DOTALL)
    helps: dict[str, str] = {}
    if section:
        entries = re.split(r"^ {4}(\w+(?:, \w+)*): ", section[1], flags=re.MULTILINE)[1:]
        for names, text in zip(entries[::2], entries[1::2], strict=True):
            helps |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return helps


def _resolve(name: str, module: str) -> str | None:
    """Class path of what a bare name means in a module; None if it is not found there."""
    tree = _module_tree(module)
    for node in tree.body if tree is not None else ():
        if isinstance(node, ast.ClassDef) and node.name == name:
            return f"{module}.{name}"
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return f"{node.module}.{alias.name}"
    return None


@lru_cache
def _module_tree(module: str) -> ast.Module | None:
    path = _module_file(module)
    if path is None:
        return None
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None


def _module_file(module: str) -> Path | None:
    """Source file of a module, found without importing its packages."""
    top, *parts = module.split(".")
    try:
        spec = importlib.util.find_spec(top)  # imports nothing, as it has no parent
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    if not parts:
        return Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        path = Path(folder, *parts)
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def _modules_of(package: str) -> Iterator[str]:
    path = _module_file(package)
    if path is not None and path.name == "__init__.py":
        for module in pkgutil.iter_modules([str(path.parent)]):
            yield f"{package}.{module.name}"
