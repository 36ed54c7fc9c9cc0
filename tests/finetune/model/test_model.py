"""The segmenter equals segment_anything's Sam, with any prompts for any of its images."""

from functools import partial
from pathlib import Path

import pytest
import torch
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from timm.layers import resample_abs_pos_embed_nhwc
from torch import Tensor, nn

from finetune.config import ModelConfig
from finetune.model.building import build_model
from finetune.model.prompt_encoder import Prompts, encode_prompts
from finetune.model.segmenter import Segmenter
from pretrain.sizes import SIZES, EncoderSize

TINY = EncoderSize(width=32, depth=2, heads=2, global_blocks=(1,))


@pytest.fixture(autouse=True)
def tiny_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", TINY)
    torch.manual_seed(0)


def stock_sam(pixels: int) -> Sam:
    """segment_anything's own composition around a tiny encoder, for images of `pixels`."""
    grid = (pixels // 16, pixels // 16)
    return Sam(
        ImageEncoderViT(
            img_size=1024,
            depth=TINY.depth,
            embed_dim=TINY.width,
            num_heads=TINY.heads,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=TINY.global_blocks,
        ),
        PromptEncoder(256, grid, (pixels, pixels), mask_in_chans=16),
        MaskDecoder(transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, 2048)),
    )


def randomise(module: nn.Module, scale: float = 0.05) -> None:
    """Every parameter moved at random: zeros would hide mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)


def sam_file(folder: Path, seed: int = 1) -> Path:
    """A checkpoint in the form of the official ones."""
    torch.manual_seed(seed)
    sam = stock_sam(1024)
    randomise(sam)
    path = folder / "sam.pth"
    torch.save(sam.state_dict(), path)
    return path


def pair(path: Path, pixels: int) -> tuple[Segmenter, Sam]:
    """Our segmenter and the stock one with the weights of one checkpoint."""
    ours = build_model(ModelConfig("tiny", pixels, trained=["*"]), sam_checkpoint=path)
    stock = stock_sam(pixels)
    stock.load_state_dict(torch.load(path, weights_only=True))
    resized = resample_abs_pos_embed_nhwc(
        stock.image_encoder.pos_embed.detach(), [pixels // 16] * 2
    )
    stock.image_encoder.pos_embed = nn.Parameter(resized)
    stock.image_encoder.img_size = pixels
    return ours, stock


def make_prompts(kind: str, pixels: int) -> Prompts:
    """Four prompts for two images, out of order."""
    image = torch.tensor([1, 0, 1, 1])
    points, labels, boxes, masks = None, None, None, None
    if "points" in kind:
        points = torch.rand(4, 3, 2) * pixels
        labels = torch.tensor([[1, 0, -1], [1, 1, 1], [0, -1, -1], [1, 0, 0]])
    if "box" in kind:
        boxes = torch.rand(4, 2, 2).mul(pixels).sort(dim=1).values.flatten(1)
    if "mask" in kind:
        masks = torch.randn(4, 1, pixels // 4, pixels // 4)
    return Prompts(image, points, labels, boxes, masks)


def stock_decode(
    stock: Sam, embeddings: Tensor, prompts: Prompts, multimask: bool
) -> tuple[Tensor, Tensor]:
    """Literal form: one call of the stock decoder for each prompt, alone with its image."""
    masks, ious = [], []
    for m, image in enumerate(prompts.image.tolist()):
        one = slice(m, m + 1)
        sparse, dense = stock.prompt_encoder(
            points=None if prompts.points is None else (prompts.points[one], prompts.labels[one]),
            boxes=None if prompts.boxes is None else prompts.boxes[one],
            masks=None if prompts.masks is None else prompts.masks[one],
        )
        mask, iou = stock.mask_decoder(
            embeddings[image : image + 1],
            stock.prompt_encoder.get_dense_pe(),
            sparse,
            dense,
            multimask,
        )
        masks.append(mask)
        ious.append(iou)
    return torch.cat(masks), torch.cat(ious)


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("kind", ["points", "box", "mask", "points box", "points box mask", "none"])
def test_output_and_gradients_equal_sam_prompt_by_prompt(
    kind: str, multimask: bool, tmp_path: Path
) -> None:
    ours, stock = pair(sam_file(tmp_path), 224)
    images = torch.randn(2, 3, 224, 224)
    prompts = make_prompts(kind, 224)
    low_res, iou = ours(images, prompts, multimask)
    expected, expected_iou = stock_decode(stock, stock.image_encoder(images), prompts, multimask)
    assert low_res.shape == (4, 3 if multimask else 1, 56, 56)
    torch.testing.assert_close(low_res, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(iou, expected_iou, atol=1e-4, rtol=1e-4)

    weight, iou_weight = torch.randn_like(low_res), torch.randn_like(iou)
    ((low_res * weight).sum() + (iou * iou_weight).sum()).backward()
    ((expected * weight).sum() + (expected_iou * iou_weight).sum()).backward()
    expected_grads = {name: p.grad for name, p in stock.named_parameters()}
    # Biases of keys have no gradient but rounding: softmax does not see them.
    rounding = 1e-6 * max(
        grad.abs().max().item() for grad in expected_grads.values() if grad is not None
    )
    for name, parameter in ours.named_parameters():
        if name == "image_encoder.pos_embed":  # held at another size; see the encoder's tests
            continue
        grad = expected_grads[name]
        assert (parameter.grad is None) == (grad is None), name
        if grad is not None:
            close = rounding + 1e-4 * grad.abs().max().item()
            torch.testing.assert_close(parameter.grad, grad, atol=close, rtol=0, msg=name)


def test_sams_own_forward_gives_the_same_masks_at_1024(tmp_path: Path) -> None:
    ours, stock = pair(sam_file(tmp_path), 1024)
    pixels = torch.rand(3, 1024, 1024) * 255
    points, labels = torch.tensor([[[100.0, 900.0]], [[512.0, 20.0]]]), torch.tensor([[1], [0]])
    record = {"image": pixels, "original_size": (1024, 1024)}
    (expected,) = stock([{**record, "point_coords": points, "point_labels": labels}], True)
    prompts = Prompts(torch.zeros(2, dtype=torch.int64), points, labels)
    with torch.no_grad():
        low_res, iou = ours(stock.preprocess(pixels)[None], prompts, multimask=True)
        masks = ours.upsample(low_res) > 0
    torch.testing.assert_close(low_res, expected["low_res_logits"], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(iou, expected["iou_predictions"], atol=1e-4, rtol=1e-4)
    assert masks.any() and not masks.all()
    assert (masks != expected["masks"]).float().mean() < 1e-4


def test_state_dict_without_adapters_is_that_of_sam() -> None:
    ours, stock = build_model(ModelConfig("tiny", 224)).state_dict(), stock_sam(224).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in stock.items()}


def test_padding_is_sams_not_a_point_and_not_the_same_as_none(tmp_path: Path) -> None:
    ours, _ = pair(sam_file(tmp_path), 224)
    embeddings = torch.randn(1, 256, 14, 14)
    image, point, label = torch.tensor([0]), torch.tensor([[[50.0, 60.0]]]), torch.tensor([[1]])

    def decode(points: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            return ours.decode(embeddings, Prompts(image, points, labels)).low_res

    alone = decode(point, label)
    padding = torch.tensor([[[7.0, 9.0]]]), torch.tensor([[-1]])
    padded = decode(torch.cat([point, padding[0]], 1), torch.cat([label, padding[1]], 1))
    elsewhere = decode(torch.cat([point, 10 * padding[0]], 1), torch.cat([label, padding[1]], 1))
    torch.testing.assert_close(padded, elsewhere, atol=0, rtol=0)  # its place means nothing
    assert (padded - alone).abs().max() > 1e-3

    no_points = Prompts(image, torch.zeros(1, 0, 2), torch.zeros(1, 0))
    with torch.no_grad():
        nothing = ours.decode(embeddings, Prompts(image)).low_res
        torch.testing.assert_close(ours.decode(embeddings, no_points).low_res, nothing)


def test_prompts_are_exact_under_autocast_and_masks_are_close(tmp_path: Path) -> None:
    ours, _ = pair(sam_file(tmp_path), 224)
    prompts, embeddings = make_prompts("points box mask", 224), torch.randn(2, 256, 14, 14)
    exact = encode_prompts(ours.prompt_encoder, prompts)
    low_res = ours.decode(embeddings, prompts).low_res
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            encode_prompts(ours.prompt_encoder, prompts), exact, atol=1e-6, rtol=0
        )
        close = ours.decode(embeddings, prompts).low_res
    assert close.dtype == torch.float32
    error = (close - low_res).abs().mean() / low_res.abs().mean()
    assert 0 < error < 0.05


@pytest.mark.parametrize(
    "wrong",
    [
        {"points": torch.zeros(4, 1, 2)},
        {"points": torch.zeros(4, 1, 2), "labels": torch.zeros(4, 2)},
        {"boxes": torch.zeros(3, 4)},
    ],
)
def test_prompts_that_do_not_fit_each_other_are_refused(wrong: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"points|boxes"):
        Prompts(torch.zeros(4, dtype=torch.int64), **wrong)
