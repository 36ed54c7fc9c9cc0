"""Options of stage one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from data_prep.common.components import Component, component
from data_prep.common.errors import UserError
from data_prep.common.messages import nearest
from pretrain.engine.peaks import BF16, PEAKS, known_peak
from pretrain.engine.run_options import RunOptions
from pretrain.sizes import PATCH, check_size


@dataclass
class DataConfig:
    """Unlabelled images."""

    shards: str | list[str]
    """Folder or URL of a shard set written by `python -m data_prep shard`, or a list of several."""
    weights: list[float] | None = None
    """Relative share of the samples that each set of a list gives; without it, by its size."""
    split: str = "train"
    """Split of the shard sets."""
    shuffle_shards: int = 4
    """Shards among which samples are shuffled; reading stays sequential over larger ranges."""
    min_scale: float = 0.2
    """Smallest share of the image's area that a random crop covers."""
    flip: float = 0.5
    """Probability of a horizontal flip; 0 where left and right matter."""
    augmentation: Component | None = component("pretrain.augment.Augmentation")
    """What else is done to a cropped image: a class of `pretrain.augment`, or null."""
    workers: int = 4
    """Processes that read and decode, for each training process."""
    damaged: Literal["fatal", "skip"] = "fatal"
    """What a record does that cannot be read, in a truncated shard for instance: fatal ends the
    run; skip replaces it with another one of its set and lists it in the run's damaged.jsonl, up to
    1 % of all records."""


@dataclass(kw_only=True)
class PretrainConfig(RunOptions):
    """Pretrain SAM's image encoder on unlabelled images."""

    RENAMED: ClassVar[dict[str, str]] = {
        "encoder": "encoder_size",
        "data.window": "data.shuffle_shards",
    }

    MAY_CHANGE: ClassVar[tuple[str, ...]] = (
        *RunOptions.MAY_CHANGE,
        *("compile", "recompute_blocks", "data.shards", "data.damaged"),
    )

    data: DataConfig
    """The images."""
    evaluators: dict[str, Component] = field(
        default_factory=dict, metadata={"base": "pretrain.probes.evaluator.StageOneEvaluator"}
    )
    """Classes that judge the model every so many steps, by the name under which they are logged,
    such as `Probe`, `HeldOutLoss` and `Figures`."""
    objectives: dict[str, Component] = component(
        "pretrain.objectives.base.Objective", required=True
    )
    """Losses by name, each a class of `pretrain.objectives`; one with weight 0 is off."""
    encoder_size: str | None = None
    """Size of the encoder: vit_t, vit_s, vit_b, vit_l or vit_h. null: that of `start_from`, or
    vit_b for a new encoder."""
    start_from: str | None = None
    """Weights to start from: a SAM checkpoint, encoder file, run folder, or hf:org/name on
    the Hub."""
    image_size: int = 224
    """Side of the square input in pixels; tokens are dropped exactly at multiples of 224."""
    compile: bool = False
    """Compile the encoder's blocks with torch.compile."""
    recompute_blocks: bool = False
    """Recompute blocks in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self.encoder_size, "encoder_size")
        if self.image_size < PATCH or self.image_size % PATCH:
            raise UserError(f"image_size {self.image_size} is not a positive multiple of {PATCH}")
        if not 0 < self.data.min_scale <= 1:
            raise UserError(f"data.min_scale {self.data.min_scale} must lie in (0, 1]")
        if not 0 <= self.data.flip <= 1:
            raise UserError(f"data.flip {self.data.flip} must lie in [0, 1]")
        if self.data.shuffle_shards < 1 or self.data.workers < 0:
            raise UserError("data.shuffle_shards must be 1 or more, and data.workers 0 or more")


Part = Literal["attention", "encoder", "objectives", "training", "memory"]


@dataclass
class NamedData(DataConfig):
    """Images that need not be there yet."""

    shards: str | list[str] = field(default_factory=list)
    """Shard sets; without any, `images` says how many images there are."""


@dataclass(kw_only=True)
class EstimateOptions(PretrainConfig):
    """Memory and time of a recipe, computed without running it. Takes all options of training."""

    output: Path = Path("runs")
    """Not used: nothing is written."""
    data: NamedData = field(default_factory=NamedData)
    """The images."""
    images: int | None = None
    """Images per epoch; null: those of `data.shards`."""
    gpus: int = 1
    """GPUs, each with a process."""
    gpu: str = "A100"
    """Name of a GPU whose peak is known."""
    memory: float | None = None
    """GB of each GPU; the number of passes that fits is computed for it, where the recipe leaves it
    to `auto`."""
    mfu: float = 0.4
    """Share of the GPU's peak that training is taken to reach."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if known_peak(self.gpu, BF16) is None:
            hint = nearest(self.gpu, PEAKS) or f"; there are {', '.join(PEAKS)}"
            raise UserError(f"gpu: the peak of {self.gpu!r} is not known{hint}")
        if self.gpus < 1 or not 0 < self.mfu <= 1 or not (self.memory is None or self.memory > 0):
            raise UserError("gpus must be 1 or more, mfu in (0, 1], and memory above 0")
        if self.images is not None and self.images < 1:
            raise UserError(f"images is {self.images}; it must be 1 or more")


@dataclass
class BenchmarkOptions:
    """Speed and memory of stage one, as ratios from one run."""

    encoder_size: str = "vit_b"
    """Size of the encoder."""
    parts: tuple[Part, ...] = ("attention", "encoder", "objectives", "training", "memory")
    """What is measured: attention backends, the dense encoder against segment_anything's, training
    steps of the objectives, training from shards, peak memory of training steps."""
    sizes: tuple[int, ...] = (224, 1024)
    """Image sizes of attention and encoder."""
    batch_size: int | None = None
    """Images at 224 pixels, fewer at larger sizes; null: 8 on a CPU, 64 on a GPU."""
    shards: str | None = None
    """Shard set of training; null makes a small one of the images in the installed packages."""
    repeats: int = 3
    """Timed calls of each kind, after one that warms up; fewer where they take over a minute."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""
    compile: bool = True
    """On a GPU also measure blocks compiled by torch.compile."""
    threads: int | None = None
    """CPU threads; null: all cores."""
    results: Path | None = Path("docs/results.md")
    """Markdown document that keeps the figures, in a section per machine; null keeps none."""

    def __post_init__(self) -> None:
        check_size(self.encoder_size, "encoder_size")
        if self.repeats < 1 or not (self.batch_size is None or self.batch_size > 0):
            raise UserError("repeats and batch_size must be at least 1")
        if not self.sizes or not self.parts:
            raise UserError("sizes and parts must not be empty")
        if bad := [size for size in self.sizes if size < PATCH or size % PATCH]:
            raise UserError(f"sizes: {bad[0]} is not a positive multiple of {PATCH}")
