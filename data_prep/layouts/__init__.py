"""Layouts: each module finds the files of one kind of folder and says how they are read.

A layout module has `pretraining(config: ShardConfig) -> Source`,
`segmentation(config: ShardSegConfig) -> Source`, or both. Its name is the layout's name, so a new
layout is one new file here.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, Literal

from data_prep.common.errors import UserError
from data_prep.records import Source


def find_layout(
    name: str, stage: Literal["pretraining", "segmentation"]
) -> Callable[[Any], Source]:
    """The function of layout `name` that makes the source of a stage.

    Raises:
        UserError: if there is no such layout, or it has no such stage.
    """
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    if name in names and (function := _function(name, stage)):
        return function
    others = ", ".join(other for other in names if _function(other, stage))
    if name in names:
        raise UserError(f"layout: {name} has no {stage} data, which have {others}")
    raise UserError(f"layout: no layout {name!r}; for {stage} there are {others}")


def _function(name: str, stage: str) -> Callable[[Any], Source] | None:
    return getattr(importlib.import_module(f"{__name__}.{name}"), stage, None)
