"""Layouts: each file here knows one published kind of collection and its own options.

The layout `x` is in `x.py`, or in `x_files.py` where a reader is called `x`. A layout from
elsewhere is chosen by the dotted path of its class.
"""

import importlib
import inspect
import pkgutil

from data_prep.common.errors import UserError
from data_prep.common.messages import nearest, one_line
from data_prep.layouts.base import FolderLayout, Layout, Stage

__all__ = ["FolderLayout", "Layout", "Stage", "find_layout", "list_layouts"]


def find_layout(name: str, stage: Stage) -> type[Layout]:
    """The class of a layout.

    Args:
        name: Name of a layout of this package, or dotted path of a class from elsewhere.

    Raises:
        UserError: There is no such layout, or it has no data of this stage.
    """
    if "." in name:
        return _from_elsewhere(name, stage)
    modules = _modules()
    if name not in modules:
        others = f"; for {stage} there are {', '.join(list_layouts(stage))}"
        raise UserError(f"layout: there is no layout {name!r}{nearest(name, modules) or others}")
    found = [layout for layout in _classes(modules[name]) if layout.stage == stage]
    if not found:
        command = "shard-seg" if stage == "pretraining" else "shard"
        raise UserError(f"layout: {name} is for `{command}`, not for {stage} data")
    return found[0]


def list_layouts(stage: Stage | None = None) -> dict[str, list[type[Layout]]]:
    """The classes of every layout by name, of one stage or of both."""
    listed = {}
    for name, module in _modules().items():
        classes = [layout for layout in _classes(module) if stage in (None, layout.stage)]
        if classes:
            listed[name] = classes
    return listed


def _modules() -> dict[str, str]:
    """Module by layout name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {
        name.removesuffix("_files"): f"{__name__}.{name}"
        for name in names
        if name != "base" and not name.startswith("_")
    }


def _classes(module: str) -> list[type[Layout]]:
    members = vars(importlib.import_module(module)).values()
    return [
        member
        for member in members
        if inspect.isclass(member) and issubclass(member, Layout) and member.__module__ == module
    ]


def _from_elsewhere(class_path: str, stage: Stage) -> type[Layout]:
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"layout: {class_path} cannot be imported ({one_line(error)})") from None
    if not (inspect.isclass(found) and issubclass(found, Layout)):
        raise UserError(f"layout: {class_path} is not a subclass of data_prep.layouts.Layout")
    if found.stage != stage:
        raise UserError(f"layout: {class_path} is for {found.stage}, not for {stage}")
    return found
