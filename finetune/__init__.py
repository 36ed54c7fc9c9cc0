"""Stage two: adapt the encoder to segmentation with few labels, measure it and use it."""

import importlib
from typing import Any

__all__ = ["Predictor"]

_MODULES = {"Predictor": "finetune.inference.predictor"}
"""Where the names of this package are. They are imported when they are asked for (PEP 562): the
options of the commands need no PyTorch."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
