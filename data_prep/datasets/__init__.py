"""Layouts: each module finds the files of one kind of folder and says how they are read.

A layout module has `pretraining(config: ShardConfig) -> Source`,
`segmentation(config: ShardSegConfig) -> Source`, or both. Its name is the layout's name, so a new
layout is one new file here.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, Literal

from data_prep.errors import UserError
from data_prep.records import Source


def find_layout(
    name: str, stage: Literal["pretraining", "segmentation"]
) -> Callable[[Any], Source]:
    """The function of layout `name` that makes the source of a stage.

    Raises:
        UserError: if there is no such layout, or it has no such stage.
    """
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    if name in names:
        function = getattr(importlib.import_module(f"{__name__}.{name}"), stage, None)
        if function is not None:
            return function
        raise UserError(f"layout: {name} has no {stage} data; use the other shard command")
    raise UserError(f"layout: no layout {name!r}; there are {', '.join(names)}")
