"""Networks of papers: their maps, the losses they add, and what each does that others do not."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn.functional import binary_cross_entropy_with_logits

from data_prep.common.components import Component
from data_prep.common.errors import UserError
from finetune.baselines.beal import BEAL
from finetune.baselines.mtseg import MTSeg
from finetune.baselines.transbts import TransBTS
from finetune.baselines.transunet import TransUNet
from finetune.baselines.ultraunet import UltraUNet, draw_marks
from finetune.config import ModelConfig
from finetune.model.building import build_model
from finetune.model.network import Network
from finetune.model.prompt_encoder import Prompts

SIZE, TARGETS = 32, ("disc", "cup")
TINY = {
    TransUNet: {"width": 16, "depth": 2, "heads": 2, "blocks": (1, 1, 1)},
    TransBTS: {"width": 8, "embedding": 16, "depth": 1, "heads": 2, "hidden": 32},
    BEAL: {},
    MTSeg: {"width": 4},
}


def tiny(kind: type[Network], size: int = SIZE, **options) -> Network:
    torch.manual_seed(0)
    return kind(size, TARGETS, **{**TINY[kind], **options})


def images(count: int, size: int = SIZE) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def masks(count: int, size: int = SIZE) -> torch.Tensor:
    """(B, T, S, S) a disc and a smaller one in it; the last image holds no cup."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    distance = ((rows - size // 2) ** 2 + (columns - size // 3) ** 2).sqrt()
    truth = torch.stack([distance < size / 4, distance < size / 9]).repeat(count, 1, 1, 1)
    truth[-1, 1] = False
    return truth


@pytest.mark.parametrize("kind", list(TINY))
def test_each_target_has_its_map_and_each_weight_its_gradient(kind) -> None:
    network = tiny(kind)
    maps = network(images(2))
    assert maps.shape[0] == 2 and maps.shape[2:] == (SIZE, SIZE)
    truth = masks(2)
    loss = binary_cross_entropy_with_logits(maps[:, : len(TARGETS)], truth.float())
    auxiliary = network.auxiliary_loss(maps, truth, torch.ones(2, SIZE, SIZE, dtype=torch.bool))
    assert maps.shape[1] == len(TARGETS) + (auxiliary is not None)
    (loss if auxiliary is None else loss + auxiliary).backward()
    missing = [name for name, each in network.named_parameters() if each.grad is None]
    assert not missing
    moved = [bool(each.grad.abs().sum() > 0) for each in network.parameters()]
    assert sum(moved) > 0.9 * len(moved)  # biases before a normalisation have none


@pytest.mark.parametrize("kind", list(TINY))
def test_a_map_is_that_of_its_target(kind) -> None:
    """What raises the logits of one target in the last layer raises its own map alone."""
    network = tiny(kind).eval()
    before = network(images(2))
    head = {TransUNet: "head", TransBTS: "head", BEAL: "mask.3", MTSeg: "up.head"}[kind]
    network.get_submodule(head).bias.data[1] += 5
    expected = before.clone()
    expected[:, 1] += 5
    assert torch.allclose(network(images(2)), expected, atol=1e-4)


def test_transbts_segments_each_stack_by_itself() -> None:
    network = tiny(TransBTS, slices=16).eval()
    slices = images(12)
    together = network(slices, (5, 4, 3))
    parts = [network(part, (len(part),)) for part in slices.split([5, 4, 3])]
    assert torch.allclose(together, torch.cat(parts), atol=1e-5)
    alone = network(slices)  # as images without neighbours
    assert torch.allclose(alone[3], network(slices[3:4], (1,))[0], atol=1e-5)
    assert not torch.allclose(alone, together, atol=1e-3)  # neighbours are looked at
    swapped = network(slices[[1, 0, 2, 3, 4]], (5,))
    assert not torch.allclose(swapped[[1, 0, 2, 3, 4]], parts[0], atol=1e-3)  # in their order
    more = network(torch.cat([slices[:5], slices[4:5].repeat(3, 1, 1, 1)]), (8,))
    assert torch.allclose(more[:5], parts[0], atol=1e-5)  # lengthened by its last slice


def test_transbts_computes_in_single_precision_on_a_cpu() -> None:
    """Where the gradient of 3D kernels in bfloat16 is at times not a number."""
    network = tiny(TransBTS).eval()
    with torch.autocast("cpu", torch.bfloat16):
        cast = network(images(3), (3,))
        cast.square().mean().backward()
    assert cast.dtype == torch.float32 and torch.equal(cast, network(images(3), (3,)))
    assert all(each.grad.abs().max() < 100 for each in network.parameters())


def test_beals_boundary_is_a_blurred_band_along_each_contour() -> None:
    network = tiny(BEAL, 64)
    network.band, network.blur = 2, 1.0
    truth = masks(2, 64)
    expected = []
    for image in truth.numpy():
        band = np.zeros((64, 64), bool)
        for mask in image:
            square = np.ones((5, 5), bool)
            grown, shrunk = (
                ndimage.binary_dilation(mask, square),
                ndimage.binary_erosion(mask, square),
            )
            band |= grown & ~shrunk
        expected.append(ndimage.gaussian_filter(band.astype(float), 1.0, truncate=4, mode="mirror"))
    found = network.boundary_of(truth)
    assert found.shape == (2, 1, 64, 64)
    assert np.allclose(found[:, 0].numpy(), np.stack(expected), atol=1e-5)
    assert found.max() > 0.9 and found[:, 0, 32, 21].max() < 0.2  # the middle of both discs
    paper = BEAL(512, TARGETS)
    assert (paper.band, paper.blur) == (5, 3.0)


def test_beals_loss_is_the_mean_squared_error_of_the_boundary_inside_the_image() -> None:
    network = tiny(BEAL, boundary_weight=2.0)
    truth, maps = masks(2), torch.randn(2, 3, SIZE, SIZE)
    valid = torch.ones(2, SIZE, SIZE, dtype=torch.bool)
    valid[0, :, 20:] = False
    boundary = network.boundary_of(truth)
    errors = [
        (1 / (1 + np.exp(-float(maps[b, 2, y, x]))) - float(boundary[b, 0, y, x])) ** 2
        for b in range(2)
        for y in range(SIZE)
        for x in range(SIZE)
        if valid[b, y, x]
    ]
    found = network.auxiliary_loss(maps, truth, valid)
    assert float(found) == pytest.approx(2 * np.mean(errors), rel=1e-4)


def test_beals_mask_sees_the_boundary() -> None:
    network = tiny(BEAL).eval()
    before = network(images(2))
    network.boundary[-1].bias.data += 5
    after = network(images(2))
    assert torch.allclose(after[:, 2], before[:, 2] + 5, atol=1e-4)
    assert not torch.allclose(after[:, :2], before[:, :2], atol=1e-3)


def test_beal_refuses_a_batch_of_one_image_in_training_alone() -> None:
    with pytest.raises(UserError, match=r"optim\.batch_size: BEAL"):
        tiny(BEAL)(images(1))
    assert tiny(BEAL).eval()(images(1)).shape == (1, 3, SIZE, SIZE)


def test_mtsegs_loss_is_the_dice_of_the_region_in_the_whole_batch() -> None:
    """The last image holds no cup, and would teach next to nothing by itself."""
    truth, maps = masks(2), torch.randn(2, 3, SIZE, SIZE)
    valid = torch.ones(2, SIZE, SIZE, dtype=torch.bool)
    valid[1, 25:] = False
    for options, chosen, reach in (
        ({}, [0, 1], 0),
        ({"region": ("cup",)}, [1], 0),
        ({"margin": 0.1, "region_weight": 0.25}, [0, 1], 3),
    ):
        network = tiny(MTSeg, **options)
        sums = np.zeros(3)
        for image in range(2):
            union = truth[image, chosen].any(0).numpy()
            region = (
                ndimage.binary_dilation(union, np.ones((2 * reach + 1,) * 2)) if reach else union
            )
            inside = valid[image].numpy()
            p = 1 / (1 + np.exp(-maps[image, 2].numpy())) * inside
            t = region * inside
            sums += (p * t).sum(), p.sum(), t.sum()
        weight = options.get("region_weight", 0.5)
        found = network.auxiliary_loss(maps, truth, valid)
        dice = (2 * sums[0] + 1) / (sums[1] + sums[2] + 1)
        assert float(found) == pytest.approx(weight * (1 - dice), rel=1e-4)


def test_mtsegs_region_guides_the_decoder_of_targets() -> None:
    """With no region its features are a U-Net's; with one everywhere they are doubled."""
    network = tiny(MTSeg).eval()
    features = network.down(images(2))
    head = network.up_region.head
    for bias, factor in ((-50.0, 1), (50.0, 2)):
        head.weight.data.zero_()
        head.bias.data.fill_(bias)
        changed = network.up(features, lambda x, by=factor: x if x.shape[-1] == SIZE else by * x)
        assert torch.allclose(network(images(2))[:, :2], changed, atol=1e-5)


def test_marks_lie_on_the_sides_of_a_box_and_on_clicks() -> None:
    image = torch.zeros(2, dtype=torch.int64)
    boxes = torch.tensor([[4.0, 8.0, 21.0, 15.0], [0.0, 0.0, 32.0, 32.0]])
    points = torch.tensor([[[10, 10], [2, 29], [0, 0]]] * 2)
    labels = torch.tensor([[1, 0, -1]] * 2)
    marks = draw_marks(Prompts(image, points, labels, boxes), 32, 1.0)
    assert marks.shape == (2, 1, 32, 32)
    expected = np.zeros((32, 32))
    rows, columns = np.mgrid[:32, :32]
    for x, y in ((12, 7.5), (20.5, 11), (12, 14.5), (3.5, 11), (10, 10)):
        expected[(columns - x) ** 2 + (rows - y) ** 2 <= 1] = 1
    expected[(columns - 2) ** 2 + (rows - 29) ** 2 <= 1] = -1
    assert np.array_equal(marks[0, 0].numpy(), expected)
    clicks = draw_marks(Prompts(image, points, labels), 32, 1.0)
    assert clicks.sum() == 0 and clicks.abs().sum() == 20


def test_ultraunet_segments_an_image_for_each_prompt() -> None:
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(
            network=Component(f"{UltraUNet.__module__}.UltraUNet", {"width": 4}), image_size=32
        ),
        ("nodule",),
    ).eval()
    boxes = torch.tensor([[4.0, 8.0, 21.0, 15.0], [10.0, 10.0, 30.0, 30.0]])
    both = Prompts(torch.tensor([1, 0]), boxes=boxes)
    given = images(2)
    decoded = model(given, both)
    assert decoded.low_res.shape == (2, 1, 32, 32) and decoded.iou is None
    for m, b in enumerate((1, 0)):
        alone = model(given[b : b + 1], Prompts(torch.tensor([0]), boxes=boxes[m : m + 1]))
        assert torch.allclose(alone.low_res[0], decoded.low_res[m], atol=1e-5)
    other = model(given, Prompts(torch.tensor([1, 0]), boxes=boxes + 1))
    assert not torch.allclose(other.low_res, decoded.low_res, atol=1e-4)
    with pytest.raises(UserError, match=r"prompts\.previous_mask"):
        model(given, Prompts(torch.tensor([0]), masks=torch.zeros(1, 1, 8, 8)))


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        (TransUNet, {"blocks": (3, 4)}, "blocks"),
        (TransUNet, {"width": 30, "heads": 4}, "width 30"),
        (TransBTS, {"width": 12}, "width 12"),
        (BEAL, {"boundary_weight": -1.0}, "boundary_weight"),
        (MTSeg, {"region": ("thyroid",)}, "there is no target 'thyroid'; there are disc, cup"),
        (MTSeg, {"margin": 1.0}, "margin 1.0"),
        (UltraUNet, {"radius": 0.0}, "radius"),
        (TransUNet, {"heads": 0}, "heads is 0"),
        (TransUNet, {"blocks": (3, 0, 9)}, "blocks .3, 0, 9. must be three positive"),
        (TransBTS, {"heads": 0}, "heads is 0"),
        (TransBTS, {"width": 0}, "width is 0"),
        (MTSeg, {"width": 0}, "width is 0"),
        (UltraUNet, {"width": 0}, "width is 0"),
    ],
)
def test_options_that_cannot_be_are_refused(kind, options, named) -> None:
    with pytest.raises(UserError, match=named):
        kind(SIZE, TARGETS, **options)
