"""Heads are tested on an encoder of a size of its own."""

import pytest
import torch

from pretrain.sizes import SIZES, EncoderSize


@pytest.fixture(autouse=True)
def tiny_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size `tiny`, and weights that are the same in each start."""
    monkeypatch.setitem(SIZES, "tiny", EncoderSize(32, 2, 2, (1,)))
    torch.manual_seed(0)
