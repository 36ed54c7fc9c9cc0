"""Objectives under bf16 autocast, and what they keep between steps."""

import numpy as np
import torch

from pretrain.objectives import EMix, Inputs, MaskedAutoencoding
from pretrain.objectives import mae as module


def test_emix_mixes_bf16_embeddings_in_fp32() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(16, 196, 32, generator=generator).bfloat16()
    images = torch.zeros(16, 3, 224, 224)
    inputs = Inputs(images, embeddings, (14, 14), torch.Generator().manual_seed(1))
    _, mixed = EMix(32, keep_ratio=1.0).plan(inputs).views

    generator = torch.Generator().manual_seed(1)
    seed = int(torch.randint(2**62, (), generator=generator))
    share = np.random.default_rng(seed).beta(1.0, 1.0, 16)
    share = torch.from_numpy(np.maximum(share, 1 - share))[:, None, None]  # fp64
    partner = torch.randperm(16, generator=generator)
    exact = share * embeddings.double() + (1 - share) * embeddings[partner].double()
    assert mixed.embeddings.dtype == torch.bfloat16
    # One rounding at the end; lambda in bf16 is off by up to 2^-9 of the whole.
    equal = mixed.embeddings == exact.bfloat16()
    assert equal.float().mean() > 0.999


def test_mae_makes_the_positions_of_a_grid_once(monkeypatch) -> None:
    made = []
    table = module.get_2d_sine_cosine_positional_embedding_from_grid

    def counted(width, axes):
        made.append(axes.shape[2:])
        return table(width, axes)

    monkeypatch.setattr(module, "get_2d_sine_cosine_positional_embedding_from_grid", counted)
    objective = MaskedAutoencoding(32, decoder_width=16, decoder_heads=2)
    encoded = torch.zeros(1, 4, 32)
    for grid in ((14, 14), (14, 28), (14, 14), (14, 28)):
        decoded = objective.decode(encoded, torch.arange(4)[None], grid)
        assert decoded.shape == (1, grid[0] * grid[1], 16)
    assert made == [(14, 14), (14, 28)]
    assert not any("position" in key for key in objective.state_dict())
