"""Simulated clicks of a training step against their plain form."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from finetune.benchmark.bench import Bench
from finetune.benchmark.plain_clicks import plain_first_clicks, plain_next_click
from finetune.model.prompt_encoder import MASK_STRIDE
from finetune.prompts.clicks import ClickSampling, random_clicks
from finetune.prompts.corrections import Clicks, Corrections

Draw = Callable[[NDArray[np.bool_], np.random.Generator, ClickSampling], Clicks]

COARSE = 12
"""Side of the random fields of which masks are made."""
CHANGE = 0.4
"""Standard deviation of what a prediction's field differs from its truth's."""


def clicks_table(bench: Bench) -> None:
    """First clicks and one round of corrections, and how long the device waits for them."""
    size, count = bench.config.click_size, bench.config.masks
    truths, predictions = masks_of(size, count)
    area, sampling = np.ones_like(truths), ClickSampling()
    large = predictions.repeat(MASK_STRIDE, 1).repeat(MASK_STRIDE, 2)

    def first(draw: Draw) -> list[Clicks]:
        rng = np.random.default_rng(0)
        return [draw(truth, rng, sampling) for truth in truths]

    clicks = first(random_clicks)
    corrections = Corrections(truths, area, size // MASK_STRIDE)

    def ours_before() -> None:
        first(random_clicks)
        Corrections(truths, area, size // MASK_STRIDE)

    def ours_after() -> None:
        corrections.add(predictions, clicks, np.random.default_rng(1))

    def plain_after() -> None:
        rng = np.random.default_rng(1)
        for prediction, truth, (points, _) in zip(large, truths, clicks, strict=True):
            plain_next_click(prediction, truth, points, rng)

    seconds = bench.clock(
        {
            ("plain", "first"): lambda: first(plain_first_clicks),
            ("plain", "next"): plain_after,
            ("ours", "first"): ours_before,
            ("ours", "next"): ours_after,
        }
    )
    bench.results.add(
        f"Clicks on {count} masks of {size} x {size} pixels on one core: first clicks, then one"
        f" round of corrections. The plain form uses scipy on whole images while the device waits;"
        f" ours draws first clicks in the loader's workers, and corrections at"
        f" {size // MASK_STRIDE} pixels."
    )
    waits = {"plain": sum(seconds["plain", part] for part in ("first", "next"))}
    waits["ours"] = seconds["ours", "next"]
    bench.results.table(
        ["clicks", "first, s", "corrections, s", "device waits, s", "ratio"],
        [
            [
                name,
                f"{seconds[name, 'first']:.3f}",
                f"{seconds[name, 'next']:.3f}",
                f"{waits[name]:.3f}",
                f"{waits['plain'] / waits[name]:.1f} x",
            ]
            for name in ("plain", "ours")
        ],
    )


def masks_of(size: int, count: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Smooth truths (M, size, size), and predictions (M, size / 4, size / 4) with some errors."""
    rng = np.random.default_rng(0)
    fields = rng.normal(size=(count, COARSE, COARSE)).astype(np.float32)
    changed = fields + CHANGE * rng.normal(size=fields.shape).astype(np.float32)
    truths, predictions = (
        np.stack([cv2.resize(f, (side, side), interpolation=cv2.INTER_CUBIC) > 0 for f in group])
        for group, side in ((fields, size), (changed, size // MASK_STRIDE))
    )
    return truths, predictions
