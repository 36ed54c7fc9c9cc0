"""Position embeddings are those of the libraries that are not imported for them."""

import numpy as np
import pytest
import torch
from lightly.models.utils import get_2d_sine_cosine_positional_embedding_from_grid
from timm.layers import resample_abs_pos_embed_nhwc

from pretrain.encoder.positions import resize, sine_cosine


@pytest.mark.parametrize("width", [32, 192, 768])
def test_sines_and_cosines_are_those_of_lightly_to_the_last_bit(width):
    axis = (np.arange(9, dtype=np.float32) + 0.5) * np.float32(0.3)
    grid = np.stack(np.meshgrid(axis, axis * 2))
    expected = get_2d_sine_cosine_positional_embedding_from_grid(width, grid[:, None])
    found = sine_cosine(grid[0].ravel(), grid[1].ravel(), width)
    assert found.dtype == np.float32 and np.array_equal(found, expected)


@pytest.mark.parametrize("grid", [(14, 14), (7, 21), (64, 64), (80, 70)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resized_table_is_that_of_timm(grid, dtype):
    table = torch.randn(1, 64, 64, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = resize(table, grid)
    assert found.dtype == dtype and found.shape == (1, *grid, 8)
    assert torch.equal(found, resample_abs_pos_embed_nhwc(table, list(grid)))


def test_gradients_flow_through_the_resizing():
    torch.manual_seed(0)
    table = torch.randn(1, 8, 8, 4, requires_grad=True)
    resize(table, (4, 4)).square().sum().backward()
    assert table.grad is not None and table.grad.abs().min() > 0
