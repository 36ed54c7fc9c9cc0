"""Heads without prompts: equal to what they are said to be, step by step, and to SAM's decoder."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import nn

from data_prep.common.components import Component
from data_prep.common.errors import UserError
from finetune.config import ModelConfig
from finetune.heads import AutoSam, CnnHead, LinearHead
from finetune.model.building import build_model
from finetune.model.prompt_encoder import Prompts
from finetune.model.segmenter import Segmenter

TARGETS = ("liver", "tumour", "kidney")
PROMPTS = Prompts(torch.tensor([1, 0, 1, 1]), target=torch.tensor([2, 0, 0, 2]))


def randomise(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)


def convolve(image: np.ndarray, layer: nn.Conv2d) -> np.ndarray:
    """(C, h, w), zeros around it, by the definition of a convolution."""
    kernel, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    side, (_, height, width) = kernel.shape[-1], image.shape
    padded = np.pad(image, ((0, 0), (side // 2,) * 2, (side // 2,) * 2))
    out = np.zeros((len(kernel), height, width))
    for row in range(height):
        for column in range(width):
            window = padded[:, row : row + side, column : column + side]
            out[:, row, column] = (kernel * window).sum((1, 2, 3)) + bias
    return out


def double(image: np.ndarray, layer: nn.ConvTranspose2d) -> np.ndarray:
    """(C, h, w): each pixel becomes four, each of them by a matrix of its own."""
    kernel, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    out = np.zeros((kernel.shape[1], 2 * image.shape[1], 2 * image.shape[2]))
    for row, column in np.ndindex(out.shape[1:]):
        matrix = kernel[:, :, row % 2, column % 2]
        out[:, row, column] = image[:, row // 2, column // 2] @ matrix + bias
    return out


def near(found: torch.Tensor, expected: np.ndarray) -> None:
    error = np.abs(found.detach().numpy() - expected).max()
    assert error < 1e-4 * np.abs(expected).max()


def of_kind(module: nn.Module, *kinds: type[nn.Module]) -> list:
    return [each for each in module.modules() if isinstance(each, kinds)]


@pytest.mark.parametrize(("stages", "width"), [(2, 3), (4, 2)])
def test_the_cnn_head_is_its_stages_one_after_the_other(stages: int, width: int) -> None:
    head = CnnHead(32, TARGETS, stages, width)
    randomise(head.head)
    convolutions = iter(of_kind(head.head, nn.Conv2d))
    doublings = iter(of_kind(head.head, nn.ConvTranspose2d))
    embeddings = torch.randn(2, 256, 2, 2)
    image = embeddings[1].numpy()
    for _ in range(2):
        image = convolve(image, next(convolutions)).clip(0)
    assert len(image) == width * 2**stages
    for stage in range(stages):
        before = len(image)
        for _ in range(2):
            image = convolve(image, next(convolutions)).clip(0)
        if stage >= stages - 2:
            image = double(image, next(doublings))
        assert len(image) == before // 2
    logits = convolve(convolve(image, next(convolutions)), next(convolutions))
    assert not list(convolutions) and not list(doublings)
    masks, iou = head.decode(embeddings, PROMPTS, False)
    assert masks.shape == (4, 1, 8, 8) and iou is None
    near(masks[0, 0], logits[2])
    near(masks[2, 0], logits[0])
    assert torch.equal(masks[0], masks[3]) and not torch.equal(masks[1], masks[2])


def gelu(values: np.ndarray) -> np.ndarray:
    return values * 0.5 * (1 + np.vectorize(math.erf)(values / math.sqrt(2)))


def test_the_linear_head_is_two_layers_per_pixel_of_an_enlarged_embedding() -> None:
    head = LinearHead(32, TARGETS)
    randomise(head.head)
    first, second = of_kind(head.head, nn.ConvTranspose2d)
    hidden, last = of_kind(head.head, nn.Conv2d)
    norm = head.head[0][1]
    embeddings = torch.randn(2, 256, 2, 3)
    image = double(embeddings[1].numpy(), first)
    centred = image - image.mean(0)
    scaled = centred / np.sqrt((centred**2).mean(0) + 1e-6)
    weight, bias = (each.detach().numpy()[:, None, None] for each in (norm.weight, norm.bias))
    image = gelu(double(gelu(scaled * weight + bias), second))
    logits = convolve(convolve(image, hidden).clip(0), last)
    masks, iou = head.decode(embeddings, PROMPTS, False)
    assert masks.shape == (4, 1, 8, 12) and iou is None
    near(masks[0, 0], logits[2])
    near(masks[2, 0], logits[0])


def test_a_linear_probe_is_one_linear_layer() -> None:
    head = LinearHead(32, TARGETS, upscaling=False)
    (layer,) = of_kind(head.head, nn.Conv2d)
    assert sum(p.numel() for p in head.head.parameters()) == 3 * 257
    embeddings = torch.randn(2, 256, 3, 3)
    small = torch.from_numpy(convolve(embeddings[0].numpy(), layer))[None]
    whole = nn.functional.interpolate(small, scale_factor=4, mode="bilinear")[0, 0]
    masks, _ = head.decode(embeddings, PROMPTS, False)
    torch.testing.assert_close(masks[1, 0], whole.float(), rtol=1e-4, atol=1e-5)


class Sam(nn.Module):
    """segment_anything's prompt encoder and decoder, as its registry builds them."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt_encoder = PromptEncoder(256, (4, 4), (64, 64), 16)
        transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
        self.mask_decoder = MaskDecoder(transformer_dim=256, transformer=transformer)

    def unprompted(self, embedding: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """(1, 1, h, w) logits of (1, 256, h / 4, w / 4), with three output tokens (3, 256) instead
        of SAM's five, and no prompt token."""
        sam = self.mask_decoder
        decoder = MaskDecoder(
            transformer_dim=256, transformer=sam.transformer, num_multimask_outputs=1
        )
        decoder.output_upscaling = sam.output_upscaling
        decoder.output_hypernetworks_mlps = sam.output_hypernetworks_mlps[:2]
        decoder.iou_token.weight.copy_(tokens[:1])
        decoder.mask_tokens.weight.copy_(tokens[1:])
        nothing, position = torch.zeros(1, 0, 256), self.prompt_encoder.get_dense_pe()
        masks, _ = decoder(
            embedding, position, nothing, torch.zeros_like(embedding), multimask_output=False
        )
        return masks


def sam_file(folder: Path) -> tuple[Path, Sam]:
    """A whole checkpoint, and the part of it that is no encoder."""
    sam = Sam()
    randomise(sam)
    encoder = build_model(ModelConfig("tiny", 64)).image_encoder.state_dict()
    state = {f"image_encoder.{key}": value for key, value in encoder.items()} | sam.state_dict()
    torch.save(state, folder / "sam.pth")
    return folder / "sam.pth", sam


def build(head: str, sam: Path | None, trained: tuple[str, ...] = (), **given) -> Segmenter:
    config = ModelConfig(
        "tiny", 64, decoder=Component(f"finetune.heads.{head}"), trained=list(trained)
    )
    return build_model(config, TARGETS, sam_checkpoint=sam, **given)


@torch.no_grad()
def test_autosam_is_sams_decoder_with_tokens_of_each_target_and_no_prompt(tmp_path) -> None:
    path, sam = sam_file(tmp_path)
    segmenter = build("AutoSam", path).eval()
    tokens = segmenter.mask_decoder.auxiliary  # (T, 3, 256)
    embeddings = torch.randn(2, 256, 4, 4)
    masks, iou = segmenter.decode(embeddings, PROMPTS)
    assert masks.shape == (4, 1, 16, 16) and iou is None
    for prompt, (image, target) in enumerate(zip(PROMPTS.image, PROMPTS.target, strict=True)):
        expected = sam.unprompted(embeddings[image : image + 1], tokens[target])[0]
        torch.testing.assert_close(masks[prompt], expected, rtol=1e-4, atol=1e-4)

    # From equal tokens all targets would have one mask, and learn to differ only slowly.
    assert not torch.allclose(masks[0], masks[2], atol=1e-2)
    tokens[2] += torch.randn(3, 256)
    changed, _ = segmenter.decode(embeddings, PROMPTS)
    torch.testing.assert_close(changed[1:3], masks[1:3])
    assert not torch.allclose(changed[0], masks[0], atol=1e-2)


def states(segmenter: Segmenter) -> dict[str, str]:
    """Of the image encoder and the head, which are trained or frozen as a whole."""
    found: dict[str, set[str]] = {}
    for part in segmenter.describe():
        found.setdefault(part.name.split(".")[0], set()).add(part.state)
    return {name: " ".join(sorted(each)) for name, each in found.items()}


def test_only_the_head_is_trained_on_sams_encoder(tmp_path) -> None:
    path, _ = sam_file(tmp_path)
    whole = build("AutoSam", path, trained=("mask_decoder.*",))
    assert states(whole) == {"image_encoder": "frozen", "mask_decoder": "trained"}
    tokens = build("AutoSam", path)
    trained = {name for name, each in tokens.named_parameters() if each.requires_grad}
    assert trained == {"mask_decoder.auxiliary"}
    assert states(build("AutoSam", None, encoder_weights=path)) == states(tokens)
    for head in ("CnnHead", "LinearHead"):
        parts = {"image_encoder": "frozen", "head": "trained"}
        assert states(build(head, path)) == states(build(head, None, encoder_weights=path)) == parts
        with pytest.raises(UserError, match=f"sam: {head} has no part of SAM's; leave it out"):
            build(head, path, encoder_weights=path)


def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path) -> None:
    path, _ = sam_file(tmp_path)
    state = torch.load(path, weights_only=True)
    position = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    for key in (position, "mask_decoder.output_upscaling.0.weight"):
        torch.save({k: v for k, v in state.items() if k != key}, tmp_path / "less.pth")
        with pytest.raises(UserError, match="1 missing: mask_decoder"):
            build("AutoSam", tmp_path / "less.pth")


@pytest.mark.parametrize("options", [{"stages": 1}, {"width": 0}])
def test_a_head_that_would_not_reach_its_resolution_is_refused(options) -> None:
    with pytest.raises(UserError, match=r"stages . must be at least 2"):
        CnnHead(64, TARGETS, **options)
    assert not AutoSam.takes_prompts
