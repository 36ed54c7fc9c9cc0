"""A decoder without SAM's weights starts ready to read clicks."""

import torch
from segment_anything.modeling.transformer import Attention

from finetune.model.mask_decoder import CLICK_GAIN, build_mask_decoder
from finetune.model.prompt_encoder import build_prompt_encoder

GRID = 14


def similarities(attention: Attention, points: torch.Tensor) -> torch.Tensor:
    """Logits (n, h * w) of a new model's clicks for the places of an image without content."""
    prompts = build_prompt_encoder(16 * GRID)
    places = prompts.get_dense_pe().flatten(2).transpose(1, 2)  # (1, h * w, C)
    clicks = prompts.pe_layer.forward_with_coords(points[None] + 0.5, (16 * GRID, 16 * GRID))
    queries, keys = attention.q_proj(clicks), attention.k_proj(places)
    heads = attention.num_heads
    logits = torch.stack(
        [
            q @ k.transpose(1, 2)
            for q, k in zip(queries.chunk(heads, -1), keys.chunk(heads, -1), strict=True)
        ]
    )
    return logits.mean(0)[0] / (queries.shape[-1] / heads) ** 0.5


@torch.no_grad()
def test_a_click_attends_to_its_own_place() -> None:
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    points = torch.stack([columns, rows], -1).reshape(-1, 2) * 16 + 7.5  # token centres
    for layer in build_mask_decoder().transformer.layers:
        logits = similarities(layer.cross_attn_token_to_image, points)
        assert (logits.argmax(1) == torch.arange(GRID**2)).float().mean() > 0.95
        assert abs(logits.diagonal().mean() - 2 * CLICK_GAIN**2) < 0.5


@torch.no_grad()
def test_what_attention_reads_returns_to_the_space_it_came_from() -> None:
    torch.manual_seed(0)
    values = torch.randn(50, 256)
    for module in build_mask_decoder().modules():
        if isinstance(module, Attention):
            read = module.out_proj(module.v_proj(values))
            along = torch.nn.functional.cosine_similarity(read, values).mean()
            # of 256 dimensions an inner width of 128 keeps half: cosine 0.7
            expected = (module.v_proj.out_features / 256) ** 0.5
            assert abs(along - expected) < 0.02
