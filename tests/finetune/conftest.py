"""Tiny labelled shard sets, a segmenter whose answers are known, and a run of a tiny one."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from data_prep.common.cli import write_resolved_config
from data_prep.common.files import write_json
from data_prep.common.parsing import parse
from data_prep.options import WriteOptions
from data_prep.records import Reference, Sample, Source
from data_prep.shards.write import write_shards
from finetune.config import TrainConfig
from finetune.model.building import build_model
from finetune.model.prompt_encoder import Prompts
from finetune.model.segmenter import Decoded
from pretrain.sizes import SIZES, EncoderSize


@pytest.fixture(scope="module", autouse=True)
def undrawn(no_curves: None) -> None:
    """Curves are looked at in the tests of stage one, whose loop draws those of both stages."""


class Records:
    """Reads the samples of a test: their paths are their places in the list."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def __call__(self, reference: Reference) -> list[Sample]:
        return [self.samples[int(reference.path)]]


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Path]:
    """Write samples as a segmentation shard set with one split, `train`."""

    def make(samples: list[Sample], labels: dict[str, list[int]] | None, name: str = "set") -> Path:
        references = [
            Reference(f"{number:04d}", group=sample.group) for number, sample in enumerate(samples)
        ]
        source = Source("test", references, Records(samples), {}, labels)
        # Simulated users draw by the records' keys, which are the same in each run of the tests.
        options = WriteOptions(output=tmp_path / name, shard_records=8, salt="of the tests")
        write_shards(source, options)
        return tmp_path / name

    return make


class Discs(nn.Module):
    """Stands in for a segmenter of 64 x 64 pixels: discs at clicks, filled boxes.

    A pixel counts for the object by the positive clicks less the negative ones within 9 pixels of
    it, by half of the previous logits, and by lying in the box. Prompts do not affect each other.
    """

    image_size = 64
    targets = ("liver", "tumour", "both")
    previous_mask, multimask, stack, text_encoder = True, False, 1, None
    decoder = SimpleNamespace(takes_prompts=True, gives_log_odds=True)

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.encoded = self.decoded = 0

    def encode(self, images: Tensor) -> Tensor:
        self.encoded += 1
        return images.mean((1, 2, 3))

    def decode(self, embeddings: Tensor, prompts: Prompts, multimask: bool = False) -> Decoded:
        assert prompts.image.max() < len(embeddings)
        self.decoded += 1
        centres = torch.arange(16) * 4 + 1.5
        rows, columns = torch.meshgrid(centres, centres, indexing="ij")
        masks = []
        for number in range(len(prompts)):
            logits = torch.full((16, 16), -0.3)
            if prompts.points is not None:
                for (x, y), label in zip(
                    prompts.points[number], prompts.labels[number], strict=True
                ):
                    near = (columns - x) ** 2 + (rows - y) ** 2 < 81
                    logits += near * (2.0 * label - 1)
            if prompts.boxes is not None:
                x0, y0, x1, y1 = prompts.boxes[number]
                logits += ((columns >= x0) & (columns <= x1) & (rows >= y0) & (rows <= y1)) * 1.0
            if prompts.masks is not None:
                logits += prompts.masks[number, 0] / 2
            masks.append(logits)
        return Decoded(torch.stack(masks)[:, None], torch.zeros(len(masks), 1))


@pytest.fixture
def discs() -> Discs:
    return Discs()


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a run of a tiny segmenter, as finetune/train.py leaves it, with every weight moved."""
    tiny = EncoderSize(width=32, depth=2, heads=2, global_blocks=(1,))
    monkeypatch.setitem(SIZES, "tiny", tiny)

    def make(*given: str, targets: tuple[str, ...] = ()) -> Path:
        torch.manual_seed(0)
        run = tmp_path / "run"
        options = ["--data.shards=unused", f"--output={run}", "--model.encoder_size=tiny"]
        config, resolved = parse(TrainConfig, "train", [*options, *given])
        segmenter = build_model(config.model, targets)
        for step in (1, 2):
            for parameter in segmenter.parameters():
                parameter.data += torch.randn_like(parameter) * 0.05
            folder = run / "checkpoints" / f"step-{step:08d}"
            folder.mkdir(parents=True)
            save_file(segmenter.trained_state_dict(), folder / "segmenter.safetensors")
            if targets:
                write_json(folder / "data.json", {"targets": {name: [1] for name in targets}})
        write_resolved_config(run, resolved)
        return run

    return make


@pytest.fixture
def run_folder(make_run: Callable[..., Path]) -> Path:
    """A run of a tiny segmenter with MSA's adapters at 64 pixels."""
    adapter = "--model.encoder_adapter=finetune.adapters.MsaAdapter"
    return make_run(adapter, "--model.image_size=64")


def ellipse(shape: tuple[int, int], centre: tuple[float, float], radii: tuple[float, float]):
    """(H, W) bool; centre and radii as (row, column)."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 < 1


@pytest.fixture
def organs() -> Callable[..., Sample]:
    """A picture, or a volume with `depth` slices, of two ellipses: labels 1 and 2."""

    def make(seed: int, shape: tuple[int, int] = (50, 70), depth: int | None = None) -> Sample:
        rng = np.random.default_rng(seed)
        slices = []
        for number in range(depth or 1):
            label = np.zeros(shape, np.uint8)
            size = rng.uniform(0.7, 1.3)
            label[ellipse(shape, (shape[0] * 0.4, shape[1] * 0.3), (12 * size, 14 * size))] = 1
            label[ellipse(shape, (shape[0] * 0.7, shape[1] * 0.7), (7 * size, 10 * size))] = 2
            if depth is not None:  # target 2 ends before target 1, and both before the volume
                label[(label == 2) & (number >= depth - 2)] = 0
                label[(label == 1) & (number in (0, depth - 1))] = 0
            slices.append(label)
        mask = np.stack(slices)
        image = np.clip(60 * mask + rng.integers(0, 50, mask.shape), 0, 255).astype(np.uint8)
        if depth is None:
            return Sample(image[0], mask[0], group=f"p{seed}", meta={"spacing": [0.5, 0.8]})
        meta = {"spacing": [2.0, 0.5, 0.8]}
        return Sample(image, mask, group=f"p{seed}", meta=meta, volume=True)

    return make
