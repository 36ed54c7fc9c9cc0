"""Epochs of training a decoder on a frozen encoder, with and without cached embeddings."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import cv2
import numpy as np

from data_prep.options import WriteOptions
from data_prep.records import Reference, Sample, Source
from data_prep.shards.write import write_shards
from finetune.benchmark.bench import MASKS_PER_IMAGE, Bench
from finetune.config import SegmentationDataConfig
from finetune.data.dataset import SegmentationDataset, collate
from finetune.data.embeddings import EmbeddingCache, shape_of
from finetune.model.losses import SegmentationLoss
from finetune.prompts.simulate import ClicksAndBoxes
from finetune.rounds import PromptedLoss

SIDE = 256
"""Of the images, in pixels."""


def cache_table(bench: Bench) -> None:
    """Seconds of an epoch: each view encoded anew, encoded and written, and read."""
    config = bench.config
    segmenter = bench.segmenter(adapters=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "shards", config.images)
        data = SegmentationDataConfig(shards=folder / "shards", views=1)
        dataset = SegmentationDataset(data, config.image_size)
        prompting, loss = ClicksAndBoxes(rounds=0), SegmentationLoss()
        fresh = (_cache(bench, folder / str(number)) for number in count())
        kept = _cache(bench, folder / "kept")

        def epoch(cache: EmbeddingCache | None) -> None:
            model = PromptedLoss(segmenter, prompting, loss, cache)
            order = dataset.order(0).tolist()
            for start in range(0, len(order), config.batch_size):
                items = order[start : start + config.batch_size]
                batch = collate([dataset[index, draw] for draw, index in enumerate(items, start)])
                batch = batch if cache is None else cache.find(batch)
                rng = np.random.default_rng(start)
                batch = replace(batch.to(bench.device), first=prompting.prepare(batch, rng))
                with bench.autocast():
                    result = model(batch, rng)["loss"]
                result.backward()
                segmenter.zero_grad()

        epoch(kept)
        seconds = bench.clock(
            {
                "without cache": lambda: epoch(None),
                "first, cache written": lambda: epoch(next(fresh)),
                "later, cache read": lambda: epoch(kept),
            }
        )
        size = sum(path.stat().st_size for path in kept.folder.rglob("*.safetensors"))
    bench.results.add(
        f"Epochs of {config.images} images in batches of {config.batch_size}, {bench.model_name}:"
        " SAM's decoder trained on a frozen encoder, one round, images read and changed in the same"
        f" process, without the optimiser. An embedding takes {size / config.images / 1e6:.2f} MB."
    )
    plain = seconds["without cache"]
    bench.results.table(
        ["epoch", "seconds", "ratio"],
        [[name, f"{s:.3f}", f"{plain / s:.2f} x"] for name, s in seconds.items()],
    )


def _cache(bench: Bench, folder: Path) -> EmbeddingCache:
    return EmbeddingCache(folder, {}, shape_of(bench.config.image_size))


def write_images(folder: Path, images: int) -> None:
    """A shard set of noisy grey images with up to four smooth targets each."""
    names = [f"target {number + 1}" for number in range(MASKS_PER_IMAGE)]
    labels = {name: [number + 1] for number, name in enumerate(names)}

    def read(reference: Reference) -> Iterator[Sample]:
        rng = np.random.default_rng(int(reference.path))
        noise = rng.normal(size=(SIDE, SIDE)).astype(np.float32)
        level = cv2.GaussianBlur(noise, (0, 0), 20)
        edges = np.quantile(level, np.linspace(0.3, 1, MASKS_PER_IMAGE + 1)[:-1])
        mask = np.searchsorted(edges, level).astype(np.uint8)  # 0 to 4
        image = (40 * mask + rng.integers(0, 60, mask.shape)).astype(np.uint8)
        yield Sample(image, mask, group=reference.path)

    references = [Reference(f"{number:06d}", group=f"{number}") for number in range(images)]
    write_shards(Source("benchmark", references, read, {}, labels), WriteOptions(output=folder))
