"""Networks through MONAI: a map for each target, volumes one by one, and the papers' sizes."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.common.cli import run_program
from data_prep.common.components import Component
from data_prep.common.errors import UserError
from data_prep.common.parsing import parse
from finetune.__main__ import COMMANDS
from finetune.baselines import ResUNet, SegResNet, SwinUnetr, UNet, Unetr
from finetune.config import ModelConfig, TrainConfig
from finetune.model.building import build_model
from finetune.model.network import Network
from finetune.model.prompt_encoder import Prompts
from finetune.stage import SegmentationStage
from helpers import networks
from helpers.networks import train

TINY = {
    UNet: {"features": [4, 4, 4, 4, 4]},
    ResUNet: {"width": 4},
    SegResNet: {"width": 8},
    Unetr: {"width": 12, "heads": 2, "filters": 4, "slices": 16},
    SwinUnetr: {"width": 12},
}
TARGETS = ("a", "b", "c")


def build(kind: type[Network], image_size: int, **options) -> Network:
    torch.manual_seed(0)
    component = Component(f"finetune.baselines.{kind.__name__}", {**TINY[kind], **options})
    return component.build(Network, image_size, TARGETS).eval()


@pytest.mark.parametrize("kind", TINY)
def test_each_target_has_a_map_as_large_as_the_image(kind) -> None:
    size = 80  # which 32 does not divide
    network = Component(f"finetune.baselines.{kind.__name__}", TINY[kind])
    segmenter = build_model(ModelConfig(network=network, image_size=size), TARGETS).eval()
    images = torch.randn(2, 3, size, size)
    maps = segmenter.encode(images)
    assert maps.shape == (2, 3, size, size)
    assert all(parameter.requires_grad for parameter in segmenter.parameters())
    prompts = Prompts(torch.tensor([0, 1, 1]), target=torch.tensor([2, 0, 2]))
    found = segmenter.decode(maps, prompts).low_res[:, 0]
    torch.testing.assert_close(found, torch.stack([maps[0, 2], maps[1, 0], maps[1, 2]]))
    assert (maps[:, 0] - maps[:, 2]).abs().mean() > 1e-3
    # an image does not change what is found in another one
    torch.testing.assert_close(segmenter.encode(images[1:]), maps[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [UNet, ResUNet, SegResNet, Unetr])  # SwinUnetr: its recipe's test
def test_a_stack_is_one_volume(kind) -> None:
    network = build(kind, 64, volumes=True)
    assert network.for_stacks
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        maps = network(images, [2, 1])
        assert maps.shape == (3, 3, 64, 64)
        changed = images.clone()
        changed[1] += 1  # the neighbour of the first slice
        again = network(changed, [2, 1])
    assert not torch.allclose(again[0], maps[0], atol=1e-4)
    assert torch.equal(again[2], maps[2])


@pytest.mark.parametrize("kind", [UNet, ResUNet, SegResNet])
@pytest.mark.parametrize("stacks", [(4, 4), (7, 1)])
def test_stacks_are_segmented_one_by_one(kind, stacks) -> None:
    network = build(kind, 48, volumes=True)
    images = torch.randn(8, 3, 48, 48)
    with torch.no_grad():
        alone = [network(part, [len(part)]) for part in images.split(stacks)]
        torch.testing.assert_close(network(images, stacks), torch.cat(alone), rtol=1e-4, atol=1e-5)
        if stacks[1] == 1:
            torch.testing.assert_close(network(images[7:]), alone[1], rtol=1e-4, atol=1e-5)


def test_edges_are_repeated_and_cut_off() -> None:
    flat, deep = build(SwinUnetr, 80), build(UNet, 32, volumes=True)
    image, slices = torch.randn(1, 3, 80, 80), torch.randn(5, 3, 32, 32)
    larger = image[:, :, [*range(80), *[79] * 16]][..., [*range(80), *[79] * 16]]
    thicker = slices[[*range(5), *[4] * 11]].transpose(0, 1)[None]  # (1, 3, 16, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(flat(image), flat.network(larger)[:, :, :80, :80])
        expected = deep.network(thicker)[0].transpose(0, 1)[:5]
        torch.testing.assert_close(deep(slices, [5]), expected)


def test_volumes_are_not_computed_in_bf16_on_a_cpu() -> None:
    """There PyTorch 2.15 leaves parts of the gradient unset, which may then hold anything."""
    flat, deep, images = build(UNet, 32), build(UNet, 32, volumes=True), torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert (flat(images).dtype, deep(images, [2]).dtype) == (torch.bfloat16, torch.float32)
        assert deep(images, [1, 1]).dtype == torch.float32


def count(kind: type[Network], image_size: int, **options) -> float:
    """Millions of parameters; no memory is taken for them."""
    with torch.device("meta"):
        network = kind(image_size, TARGETS, **options)
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


def test_sizes_are_those_of_the_papers() -> None:
    unet, residual = count(UNet, 224), count(ResUNet, 224)
    assert unet == pytest.approx(31.0, rel=0.02)  # of Ronneberger et al. 2015
    with torch.device("meta"):
        shortcuts = [
            parameter.numel()
            for name, parameter in ResUNet(224, TARGETS).named_parameters()
            if ".shortcut." in name
        ]
    assert residual - sum(shortcuts) / 1e6 == pytest.approx(7.8, rel=0.01)  # Zhang et al. 2018
    patches = 2 * 16**3 * 768 / 1e6  # of two more channels than a scan has
    unetr = count(Unetr, 96, volumes=True, slices=96)
    assert unetr - patches == pytest.approx(92.58, rel=0.01)  # Hatamizadeh et al. 2022
    swin = sum(p.numel() for p in SwinUnetr(96, TARGETS, volumes=True).parameters()) / 1e6
    assert swin == pytest.approx(61.98, rel=0.01)  # Hatamizadeh et al. 2022, of brain tumours


@pytest.mark.parametrize(
    ("kind", "size", "options", "said"),
    [
        (UNet, 16, {}, "model.image_size is 16; UNet needs at least 32"),
        (UNet, 64, {"features": [4, 4]}, "features is .4, 4.; give 5 positive numbers"),
        (ResUNet, 64, {"width": 0}, "width is 0"),
        (SwinUnetr, 64, {"width": 0}, "width is 0"),
        (SegResNet, 64, {"width": -8}, "width is -8"),
        (Unetr, 64, {"heads": 0}, "heads is 0"),
        (Unetr, 64, {"filters": 0}, "filters is 0"),
        (Unetr, 64, {"volumes": True, "slices": 20}, "slices is 20; it must be a multiple of 16"),
        (SwinUnetr, 64, {"width": 10}, "divisible by 12"),
    ],
)
def test_sizes_that_cannot_be_are_refused(kind, size, options, said) -> None:
    with pytest.raises(UserError, match=said):
        build(kind, size, **options)


def test_a_stack_of_too_many_slices_is_refused() -> None:
    network = build(Unetr, 32, volumes=True)
    with pytest.raises(UserError, match="slices is 16, and a stack has 17 slices"):
        network(torch.zeros(17, 3, 32, 32), [17])


@pytest.mark.parametrize(("module", "package"), [("monai.networks", "monai"), ("einops", "einops")])
def test_what_is_not_installed_is_named(module, package, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"needs {package}, .* `pip install 'samaritan\[base"):
        build(ResUNet, 64)


def test_the_loss_of_a_volume_is_that_of_all_its_slices_together(make_shards, organs) -> None:
    """Dice over a stack of 6 slices and one of 4, some without the target, as of one mask each."""
    volumes = [organs(seed, (40, 50), depth) for seed, depth in enumerate((6, 4, 6))]
    shards = make_shards(volumes, {"one": [1], "other": [2]})
    network = "{class_path: finetune.baselines.UNet, init_args: {volumes: true, features: "
    network += "[4, 4, 4, 4, 4]}}"
    words = [f"--data.shards={shards}", "--output=x", f"--model.network={network}"]
    words += [*networks.OPTIONS, "--model.image_size=32", "--data.stack=6", "--data.validation=0"]
    config, _ = parse(TrainConfig, "train", words)
    stage = SegmentationStage(config, torch.device("cpu"))
    seen: dict[int, Any] = {}
    for index in range(len(stage.dataset)):
        sample = stage.dataset[index, index]
        seen.setdefault(len(sample.slices), sample)
    batch = stage.collate([seen[6], seen[4]])
    assert batch.stacks == (6, 4)
    loss, _ = stage.losses(stage.model, batch, 0)

    maps = stage.model._encode(batch, np.random.default_rng(0)).detach()
    terms, empty = [], 0
    for slices in (range(6), range(6, 10)):
        for target in range(2):
            overlap = probabilities = truths = pixels = entropy = 0.0
            for place in slices:
                (number,) = np.flatnonzero((batch.image == place) & (batch.targets == target))
                valid, truth = batch.valid[place], batch.masks[number].float()
                probability = maps[place, target].sigmoid()
                overlap += float((probability * truth)[valid].sum())
                probabilities += float(probability[valid].sum())
                truths += float(truth[valid].sum())
                pixels += int(valid.sum())
                right = torch.where(truth > 0, probability, 1 - probability)
                entropy -= float(right.log()[valid].sum())
                empty += not truth.any()
            assert truths
            dice = 1 - (2 * overlap + 1) / (probabilities + truths + 1)
            terms.append(dice + entropy / pixels)
    assert empty and loss.item() == pytest.approx(np.mean(terms), rel=1e-4)


def test_volumes_are_learned_from_and_single_images_found(make_shards, organs, tmp_path) -> None:
    volumes = [organs(seed, (40, 50), 6) for seed in range(5)]
    labelled_volumes = make_shards(volumes, {"one": [1], "other": [2]})
    network = "{class_path: finetune.baselines.UNet, init_args: {volumes: true, features: "
    network += "[4, 4, 4, 4, 4]}}"
    options = (f"--model.network={network}", "--model.image_size=32", "--optim.steps=2")
    with pytest.raises(SystemExit):
        train(labelled_volumes, tmp_path / "none", *options)
    run = train(labelled_volumes, tmp_path / "run", *options, "--data.stack=4")
    given = [f"--run={run}", "--device=cpu", "--threads=1"]
    words = [*given, f"--data.shards={labelled_volumes}", "--data.split=train", "--data.cases=1"]
    words += [f"--output={tmp_path / 'results'}", "--protocols=[TargetOnly]"]
    run_program("finetune", COMMANDS, ["evaluate", *words])
    assert "no prompt" in (tmp_path / "results" / "results.csv").read_text()
    Image.fromarray(np.zeros((50, 70), np.uint8)).save(tmp_path / "photo.png")
    files = [f"--input={tmp_path / 'photo.png'}", f"--output={tmp_path / 'mask.png'}"]
    run_program("finetune", COMMANDS, ["predict", *given, *files])
    assert Image.open(tmp_path / "mask.png").size == (70, 50)
