"""segment_anything's modules, without the rest of its package until somebody uses it.

The package itself imports its automatic mask generator, and with it torchvision and TorchDynamo:
two seconds for which a first mask would wait, and of which nothing here makes use.
"""

import importlib.util
import sys
from typing import Any


def _run_when_used(package: str) -> None:
    """Let the modules of a package be imported before its `__init__` is run.

    That is run when something of the package itself is asked for (PEP 562).
    """
    if package in sys.modules:
        return
    spec = importlib.util.find_spec(package)
    if spec is None or spec.loader is None:
        return  # the import below says that it is missing
    module, loader = importlib.util.module_from_spec(spec), spec.loader

    def run(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        vars(module).pop("__getattr__", None)
        loader.exec_module(module)
        return getattr(module, name)

    vars(module)["__getattr__"] = run
    sys.modules[package] = module


_run_when_used("segment_anything")

from segment_anything.modeling import (  # noqa: E402
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    TwoWayTransformer,
)
from segment_anything.modeling.image_encoder import Block  # noqa: E402
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom  # noqa: E402
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock  # noqa: E402

__all__ = [
    "Attention",
    "Block",
    "ImageEncoderViT",
    "MaskDecoder",
    "PositionEmbeddingRandom",
    "PromptEncoder",
    "TwoWayAttentionBlock",
    "TwoWayTransformer",
]
