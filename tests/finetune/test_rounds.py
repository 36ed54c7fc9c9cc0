"""Rounds that are differentiated one by one train as the plain mean does, at one round's memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_prep.common.components import Component
from finetune.benchmark.rounds import mean_of_all
from finetune.config import ModelConfig
from finetune.data.dataset import SegmentationBatch
from finetune.model.building import build_model
from finetune.model.losses import SegmentationLoss
from finetune.prompts.clicks import ClickSampling
from finetune.prompts.simulate import ClicksAndBoxes
from finetune.rounds import PromptedLoss
from pretrain.engine.memory import pass_memory
from pretrain.engine.one_by_one import mean_one_by_one
from pretrain.sizes import SIZES, EncoderSize

SIZE = 64
FEW = ClickSampling(max_positive=2, max_negative=1)
ADAPTERS = {
    "encoder_adapter": Component("finetune.adapters.MsaAdapter"),
    "decoder_adapter": Component("finetune.adapters.MsaDecoderAdapter"),
}
CLICKS: dict[str, Any] = {"box_share": 0.0, "clicks": FEW}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", EncoderSize(32, 2, 2, (1,)))


def batch_of(masks: int = 3, size: int = SIZE) -> SegmentationBatch:
    """Two images; masks are discs."""
    rows, columns = np.ogrid[:size, :size]
    discs = [(rows - 20 - 4 * n) ** 2 + (columns - 40 + 3 * n) ** 2 < 150 for n in range(masks)]
    valid = torch.ones(2, size, size, dtype=torch.bool)
    valid[1, 56:] = False
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 1, size, size), dtype=torch.uint8, generator=generator)
    truths = torch.from_numpy(np.stack(discs)) & valid[[n % 2 for n in range(masks)]]
    image, targets = torch.arange(masks) % 2, torch.zeros(masks, dtype=torch.int64)
    return SegmentationBatch(["a", "b"], images, valid, truths, image, targets)


def model_of(
    prompting: ClicksAndBoxes, frozen: bool = False, size: int = SIZE, **options: Any
) -> PromptedLoss:
    torch.manual_seed(0)
    segmenter = build_model(ModelConfig("tiny", size, **{**ADAPTERS, **options}))
    with torch.no_grad():  # adapters that start at zero would have no say
        for name, parameter in segmenter.named_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05 if "adapter" in name else 0)
    if frozen:
        keys = segmenter.state_dict()
        segmenter.freeze(frozenset(key for key in keys if key.startswith("image_encoder.")))
    return PromptedLoss(segmenter, prompting, SegmentationLoss())


def step(model: PromptedLoss, seed: int, bf16: bool) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Loss and gradients; as the engine, autocast covers the forward pass alone."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
        results = model(batch_of(), np.random.default_rng(seed))
    results["loss"].backward()
    return results["loss"].detach(), {n: p.grad for n, p in model.named_parameters()}


CASES = {
    "clicks": (ClicksAndBoxes(single_share=0.0, rounds=3, **CLICKS), {}),
    "best of three": (ClicksAndBoxes(single_share=1.0, rounds=3, **CLICKS), {}),
    "boxes": (ClicksAndBoxes(box_share=1.0, rounds=3), {}),
    "skipped rounds": (ClicksAndBoxes(rounds=1, skipped_rounds=3, **CLICKS), {}),
    "recomputed blocks": (ClicksAndBoxes(rounds=3, **CLICKS), {"recompute_blocks": True}),
    "frozen encoder": (
        ClicksAndBoxes(rounds=3, **CLICKS),
        {"frozen": True, "encoder_adapter": None},
    ),
}


@pytest.mark.filterwarnings("ignore:.*pad SAM's attention windows")
@pytest.mark.parametrize(
    ("case", "bf16"), [*((case, False) for case in CASES), ("clicks", True), ("boxes", True)]
)
def test_loss_and_gradients_are_those_of_the_plain_mean(case, bf16) -> None:
    prompting, options = CASES[case]
    model = model_of(prompting, **options)
    loss, found = step(model, 1, bf16)
    model.mean = mean_of_all
    expected_loss, expected = step(model, 1, bf16)
    assert torch.equal(loss, expected_loss)
    largest = max(float(each.abs().max()) for each in expected.values() if each is not None)
    assert largest > 0
    for name, gradient in expected.items():
        assert (found[name] is None) == (gradient is None), name
        if gradient is not None:
            atol = 1e-6 * largest
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=atol, msg=name)


@pytest.fixture
def memory_of() -> Iterator[Any]:
    def measure(rounds: int, mean: Any = mean_one_by_one) -> int:
        model = model_of(ClicksAndBoxes(rounds=rounds - 1, **CLICKS), size=224)
        model.mean = mean
        batch, rng = batch_of(8, 224), np.random.default_rng(0)
        batch.first = model.prompting.prepare(batch, rng)
        return pass_memory(list(model.parameters()), lambda: model(batch, rng)["loss"])

    return measure


def test_eight_rounds_take_little_more_memory_than_one(memory_of) -> None:
    one, eight = memory_of(1), memory_of(8)
    assert eight <= 1.25 * one
    assert memory_of(4, mean_of_all) > 1.5 * one
