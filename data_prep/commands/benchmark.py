"""Speed of sharding and loading as ratios to what one would write without this package.

The images are slices of the MNI152 brain template, with the noise of a scan that the averaged
template lacks, and scikit-learn's two photographs enlarged to six megapixels, with a sensor's.
"""

import io
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from data_prep.common.results import Results, processor
from data_prep.format.codec import decode, encode_jpeg, encode_png
from data_prep.layouts.folder import Folder
from data_prep.layouts.samples import template
from data_prep.options import BenchmarkOptions, WriteOptions
from data_prep.shards.write import write_shards

SIDE = 224
PHOTOGRAPH = (3000, 2000)
"""Width and height in pixels."""
MAX_SIZE = 512
NOISE = 0.03
"""Standard deviation of the scan's noise, in shares of the brightest voxel."""
DISTINCT = 8
"""Photographs that differ; the others are copies of them."""
BATCH = 64
READ_AHEAD = 4
"""Batches that each worker of the loader reads ahead."""
PACKAGES = ("pillow", "imagecodecs", "webdataset", "torch")
"""Packages whose versions stand beside the figures."""


def benchmark(config: BenchmarkOptions, resolved: str) -> None:
    """Speed of sharding and loading, as ratios measured in one run."""
    machine = f"{processor()}, {os.cpu_count()} cores"
    title = f"Sharding and loading: {machine}"
    results = Results(title, "python -m data_prep benchmark", config, PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        measure(config, Path(folder), results)
    results.save()


def measure(config: BenchmarkOptions, folder: Path, results: Results) -> None:
    """Measure everything. `folder` is filled with images and shards."""
    make_slices(folder / "slices", config.images)
    make_photographs(folder / "photographs", config.photographs)
    results.add(f"Shortest of {config.repeats} times; images per second.")
    results.table(
        ["sharding", "workers", "ours", "reference", "images per second", "ratio"],
        _compare_sharding(config, folder / "slices", folder / "photographs"),
    )
    _sharding(folder / "slices", folder / "slices-set", None, workers=1)
    _compare_loading(folder / "slices", folder / "slices-set", config, results)


def make_slices(folder: Path, count: int) -> None:
    """Slices of the T1 template in three planes as grey PNG files of 224 x 224 pixels."""
    folder.mkdir()
    volume = template().get_fdata()
    generator = np.random.default_rng(0)
    parts = generator.normal(0, NOISE * volume.max(), (2, *volume.shape))
    volume = np.hypot(volume + parts[0], parts[1])  # Rician, as magnitudes of complex values are
    volume = (volume / volume.max() * 255).astype(np.uint8)
    for index in range(count):
        axis = index % 3
        length = volume.shape[axis]
        depth = length // 4 + index // 3 * 7 % (length // 2)
        image = Image.fromarray(volume.take(depth, axis)).resize((SIDE, SIDE))
        (folder / f"{index:06d}.png").write_bytes(encode_png(np.array(image)))


def make_photographs(folder: Path, count: int) -> None:
    """Photographs of six megapixels as JPEG files."""
    from sklearn.datasets import load_sample_images

    folder.mkdir()
    generator = np.random.default_rng(0)
    originals = load_sample_images().images
    files: list[bytes] = []
    for index in range(min(count, DISTINCT)):
        large = Image.fromarray(originals[index % len(originals)]).resize(PHOTOGRAPH)
        noise = generator.normal(0, 4, (PHOTOGRAPH[1], PHOTOGRAPH[0], 3))
        files.append(encode_jpeg((np.asarray(large) + noise).clip(0, 255).astype(np.uint8), 92))
    for index in range(count):
        (folder / f"{index:06d}.jpg").write_bytes(files[index % len(files)])


def _compare_sharding(
    config: BenchmarkOptions, slices: Path, photographs: Path
) -> Iterator[list[str]]:
    """Rows of the table: ours, and what one would write without this package."""
    for name, images, max_size, workers, references in (
        ("PNG, 224 pixels", slices, None, 1, (_plain_sharding, _copying)),
        (
            "JPEG, 6 megapixels to 512 pixels",
            photographs,
            MAX_SIZE,
            config.workers,
            (_plain_sharding,),
        ),
    ):
        outputs = (images.with_name(f"{images.name}-{index}") for index in itertools.count())
        ours, *others = shortest(
            [
                partial(_sharding_into, outputs, images, max_size, workers),
                *(partial(_into, outputs, reference, images, max_size) for reference in references),
            ],
            config.repeats,
        )
        files = len(list(images.iterdir()))
        for reference, seconds in zip(references, others, strict=True):
            what = (reference.__doc__ or "").rstrip(".")
            rates = [f"{files / ours:.0f}", what, f"{files / seconds:.0f}"]
            yield [name, str(workers), *rates, f"{seconds / ours:.1f} x"]


def _into(
    outputs: Iterator[Path],
    sharding: Callable[[Path, Path, int | None], None],
    images: Path,
    max_size: int | None,
) -> None:
    sharding(images, next(outputs), max_size)


def _sharding_into(
    outputs: Iterator[Path], images: Path, max_size: int | None, workers: int
) -> None:
    _sharding(images, next(outputs), max_size, workers)


def _sharding(images: Path, output: Path, max_size: int | None, workers: int) -> None:
    layout = Folder(input=images, max_size=max_size)
    records = -(-len(list(images.iterdir())) // (4 * workers))
    options = WriteOptions(output=output, workers=workers, shard_records=records)
    write_shards(layout.source("folder", layout.references()), options)


def _plain_sharding(images: Path, output: Path, max_size: int | None) -> None:
    """Decoded and encoded by Pillow, written by ShardWriter."""
    import webdataset

    output.mkdir()
    with webdataset.ShardWriter(f"{output}/%06d.tar", verbose=0) as writer:
        for path in sorted(images.iterdir()):
            with Image.open(path) as image:
                image.load()
                if max_size is not None:
                    image.thumbnail((max_size, max_size), Image.Resampling.LANCZOS, None)
                kind = path.suffix.lstrip(".")
                writer.write({"__key__": path.stem, kind: image, "json": {"size": image.size}})


def _copying(images: Path, output: Path, _: int | None) -> None:
    """Bytes copied by ShardWriter, pixels never decoded."""
    import webdataset

    output.mkdir()
    with webdataset.ShardWriter(f"{output}/%06d.tar", verbose=0) as writer:
        for path in sorted(images.iterdir()):
            data = path.read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                size = image.size
            kind = path.suffix.lstrip(".")
            writer.write({"__key__": path.stem, kind: data, "json": {"size": size}})


def _compare_loading(
    images: Path, shards: Path, config: BenchmarkOptions, results: Results
) -> None:
    # torch, which the workers of `shard` need not wait for
    from data_prep.loader.batches import build_loader
    from data_prep.loader.dataset import ShardDataset

    dataset = ShardDataset(shards)
    batches = max(4 * config.images // BATCH, 4)
    files = [path.read_bytes() for path in sorted(images.iterdir())]
    jobs = [job.tolist() for job in np.array_split(np.arange(batches * BATCH) % len(files), 8)]
    process = psutil.Process()
    memory = []

    def load() -> None:
        list(map(len, itertools.islice(loader, batches)))

    with ProcessPoolExecutor(config.workers, get_context("fork"), _keep, (files,)) as pool:
        list(pool.map(_decode_all, jobs[: config.workers], [True] * config.workers))
        loader = iter(build_loader(dataset, BATCH, workers=config.workers, collate=_stack))
        pillow, ours, loading = [], [], []
        for _ in range(config.repeats):
            pillow.append(_seconds(lambda: list(pool.map(_decode_all, jobs, [True] * len(jobs)))))
            ours.append(_seconds(lambda: list(pool.map(_decode_all, jobs, [False] * len(jobs)))))
            # what was read ahead meanwhile must not count
            list(itertools.islice(loader, READ_AHEAD * config.workers))
            loading.append(_seconds(load))
            memory.append(_memory(process))
    images_read = batches * BATCH
    seconds = min(loading)
    results.table(
        ["PNG, 224 pixels", "workers", "images per second", "share of this that loading reaches"],
        [
            [name, config.workers, f"{images_read / value:.0f}", f"{value / seconds:.0%}"]
            for name, value in (
                ("loader", seconds),
                ("decoding alone, libpng (which the loader uses)", min(ours)),
                ("decoding alone, Pillow", min(pillow)),
            )
        ],
    )
    results.add(
        f"Memory of loader and workers: {memory[0]:.0f} MB after {images_read} images, "
        f"{memory[-1]:.0f} MB after {images_read * config.repeats}."
    )


def _stack(records: list[Any]) -> Any:
    import torch
    from torch.utils.data import default_collate

    return default_collate([torch.from_numpy(record.image) for record in records])


_files: list[bytes] = []
"""Encoded images of a decoding process; filled once, at its start."""


def _keep(files: list[bytes]) -> None:
    _files.extend(files)


def _decode_all(indices: list[int], by_pillow: bool) -> int:
    total = 0
    for index in indices:
        if by_pillow:
            with Image.open(io.BytesIO(_files[index])) as image:
                total += int(np.array(image)[0, 0])
        else:
            total += int(decode("png", _files[index])[0, 0])
    return total


def _memory(process: psutil.Process) -> float:
    """Unshared memory of a process and its children in MB."""
    processes = [process, *process.children(recursive=True)]
    return sum(one.memory_full_info().uss for one in processes) / 1e6


def shortest(functions: list[Callable[[], Any]], repeats: int) -> list[float]:
    """The shortest time of each function in seconds; they take turns, `repeats` times."""
    times = [[_seconds(function) for function in functions] for _ in range(repeats)]
    return [min(taken) for taken in zip(*times, strict=True)]


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
