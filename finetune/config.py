"""Options of stage two."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from data_prep.common.components import Component, component, components
from data_prep.common.errors import UserError
from pretrain.engine.run_options import RunOptions
from pretrain.sizes import PATCH, check_size


def check_image_size(pixels: int, option: str) -> None:
    """Refuse a side of the square input that does not divide into patches.

    Raises:
        UserError: Names the option.
    """
    if pixels <= 0 or pixels % PATCH:
        raise UserError(f"{option} is {pixels}; it must be a multiple of {PATCH}")


@dataclass(frozen=True)
class Augmentation:
    """How strongly training images are changed; 0 leaves a property as it is."""

    rotation: float = 10.0
    """Largest rotation either way, in degrees."""
    scale: float = 0.1
    """Largest enlargement: 0.1 draws a factor in 1 / 1.1 to 1.1, log-uniform."""
    translation: float = 0.05
    """Largest shift along x and along y, as a share of the image's longest side."""
    flip: float = 0.0
    """Probability of a mirror image. Off by default: it swaps left and right organs."""
    gamma: float = 0.2
    """Grey values on 0..1 are raised to exp(u), u uniform in -gamma..gamma."""
    contrast: float = 0.1
    """Largest relative change of the distance from the image's mean grey value."""
    brightness: float = 0.1
    """Largest shift of grey values, as a share of white."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise UserError(f"augmentation.{name} is {value}; it must not be negative")
        for name in ("flip", "contrast"):
            if getattr(self, name) > 1:
                raise UserError(f"augmentation.{name} is above 1; it must lie in 0..1")


@dataclass(frozen=True, kw_only=True)
class CaseSelection:
    """Which labelled cases of a shard set are used."""

    shards: Path
    """Folder of a segmentation shard set, from `python -m data_prep shard-seg`."""
    split: str = "train"
    """Split of the shard set."""
    targets: list[str] | None = None
    """Names of the targets to use; null: all."""
    cases: int | None = None
    """Use only this many groups (patients), the first of a seeded order: a few-label experiment. A
    larger number includes the cases of a smaller one. null: all."""

    def __post_init__(self) -> None:
        if self.cases is not None and self.cases < 1:
            raise UserError(f"data.cases is {self.cases}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class SegmentationDataConfig(CaseSelection):
    """Labelled images for training, and how they are changed."""

    validation: float = 0.0
    """Share of these groups that is not trained on, but judged by `finetune.validation.Validation`
    to find the best checkpoint."""
    without_targets: float | None = 0.0
    """Share of the samples that are images, or slices of volumes, without any of the targets; null:
    as many as the data has. For decoders without prompts, which must learn to find nothing there,
    and for texts, which may ask for what is not there; clicks and boxes have nothing to ask for."""
    masks_per_image: int = 4
    """Largest number of targets of an image trained on at once. Decoders without prompts are
    trained on every target of every image, whether it is there or not."""
    stack: int = 1
    """Neighbouring slices of a volume that make up a training sample, for adapters and prompts that
    look at neighbours: the slice that is drawn and those around it, moved to lie inside the volume;
    all slices of a thinner one. Each target that the drawn slice holds is segmented in all of them.
    An `image` of optim.batch_size is then a stack."""
    workers: int = 0
    """Processes that load images; 0 loads them in the training process."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random changes of the images."""
    views: int | None = None
    """Each image is changed in so many ways, which take turns from epoch to epoch. null: anew each
    time it is drawn."""
    cache: Path | None = None
    """Folder in which the embeddings of these views are kept, for an image encoder that is frozen
    but for its neck: it is run once for each. A view takes 0.2 MB at 224 pixels and 4.2 MB at 1024;
    three times that before the neck of a vit_b of stage one, which is trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.masks_per_image < 1 or self.workers < 0:
            raise UserError("data.masks_per_image must be at least 1, data.workers at least 0")
        if self.stack < 1:
            raise UserError(f"data.stack is {self.stack}; it must be at least 1")
        if self.views is not None and self.views < 1:
            raise UserError(f"data.views is {self.views}; it must be at least 1, or null")
        if self.cache is not None and self.views is None:
            raise UserError("data.cache: needs a number of views; set data.views to 8, say")
        for name in ("validation", "without_targets"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UserError(f"data.{name} is {value}; it must be in 0..1, below 1")


@dataclass
class ModelConfig:
    """What a segmenter is made of."""

    encoder_size: str | None = None
    """Size of the image encoder: vit_t, vit_s, vit_b, vit_l or vit_h. null: that of the weights, or
    vit_b for a new encoder."""
    image_size: int = 224
    """Side of the square input in pixels, a multiple of 16."""
    encoder_adapter: Component | None = component("finetune.adapters.BlockAdapter")
    """Adapter set in each encoder block."""
    decoder: Component = component(
        "finetune.model.decoder.Decoder", "finetune.model.mask_decoder.SamDecoder"
    )
    """How masks are made of an image's embedding: SAM's prompted decoder, or another."""
    network: Component | None = component("finetune.model.network.Network")
    """A whole network in the place of SAM's encoder and decoder, such as
    finetune.baselines.UNet. Nothing is adapted then, and `encoder` names weights only for a network
    that has a part to pretrain."""
    decoder_adapter: Component | None = component("finetune.adapters.DecoderBlockAdapter")
    """Adapter set in the first block of SAM's decoder."""
    trained: list[str] = field(default_factory=list)
    """Parameters trained although they were loaded, as patterns of names: `mask_decoder.*`.
    Adapters, and all that was not loaded, are trained without being named."""
    recompute_blocks: bool = False
    """Recompute encoder blocks in the backward pass instead of storing them: less memory, about
    a third more time."""
    text: Component | None = component("finetune.prompts.text.TextEncoder")
    """What embeds texts, such as ClipText; null: the model takes no texts."""

    def __post_init__(self) -> None:
        check_size(self.encoder_size, "model.encoder_size")
        check_image_size(self.image_size, "model.image_size")


@dataclass(kw_only=True)
class TrainConfig(RunOptions):
    """Adapt a pretrained encoder to promptable segmentation with few labels."""

    RENAMED: ClassVar[dict[str, str]] = {"model.encoder": "model.encoder_size"}

    MAY_CHANGE: ClassVar[tuple[str, ...]] = (
        *RunOptions.MAY_CHANGE,
        *("data.cache", "data.shards", "model.recompute_blocks"),
    )

    data: SegmentationDataConfig
    """The labelled images."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Encoder, decoder, adapters, and what is trained."""
    encoder: str | None = None
    """Weights of the image encoder: a stage-one run, an encoder file, a SAM checkpoint, or
    hf:org/name on the Hub. null: those of `sam`, or new ones, which are then trained."""
    sam: str | None = None
    """SAM checkpoint for prompt encoder and mask decoder. null: those of `encoder` if that is a
    whole SAM checkpoint, otherwise new ones, which are trained."""
    prompts: Component = component(
        "finetune.prompts.prompting.Prompting", "finetune.prompts.simulate.ClicksAndBoxes"
    )
    """How a batch is prompted in training, round by round."""
    loss: Component = component(
        "finetune.model.losses.MaskLoss", "finetune.model.losses.SegmentationLoss"
    )
    """Loss of the predicted masks, averaged over rounds."""


@dataclass(frozen=True, kw_only=True)
class HeldOut(CaseSelection):
    """Which labelled cases are evaluated."""

    split: str = "test"
    """Split of the shard set."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Which model a command uses: that of a run, or SAM as it is."""

    run: str | None = None
    """Run folder of finetune/train.py, or hf:org/name of one on the Hub. null: the model is that of
    `sam`, as it is."""
    sam: str | None = None
    """SAM checkpoint. Without `run` it is the model, with no adapters. With it, where the one that
    the run was trained on lies now, for a run that does not keep it."""
    encoder: str | None = None
    """Image encoder to use instead of that of `sam`: a stage-one run, an encoder file, or
    hf:org/name on the Hub. With `run`, where the one that it was trained on lies now."""
    checkpoint: Literal["best", "last"] = "best"
    """Of a run that was validated: the checkpoint that did best, or the last one. Others have the
    last one alone."""
    image_size: int | None = None
    """Without `run`: side of the square input in pixels, a multiple of 16. null: that of the
    encoder's training, 1024 for SAM's own."""

    def __post_init__(self) -> None:
        if self.run is None and self.sam is None:
            raise UserError("run: give --run FOLDER for an adapted model, or --sam FILE for SAM")
        if self.image_size is None:
            return
        if self.run is not None:
            raise UserError("image_size: a run has its own; leave it out, or leave out --run")
        check_image_size(self.image_size, "image_size")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ModelSource):
    """Measure an adapted model, or plain SAM, on held-out cases: tables and pictures."""

    data: HeldOut
    """The cases."""
    output: Path
    """Folder for the tables and figures; must be new or empty."""
    protocols: list[Component] = components(
        "finetune.evaluation.protocols.Protocol",
        (
            "finetune.evaluation.protocols.Clicks",
            "finetune.evaluation.protocols.Box",
            "finetune.evaluation.protocols.JitteredBox",
        ),
    )
    """Simulated users: each prompts for every object in its own way."""
    tolerance: float = 1.0
    """Distance within which surfaces agree for the NSD: mm, or pixels where spacing is unknown."""
    hd95: Literal["surface", "monai"] = "surface"
    """Definition of the HD95: `surface` as DeepMind's surface-distance, `monai` for comparison with
    papers that used MONAI. docs/metrics.md says how they differ."""
    thumbnails: int = 192
    """Longest side in pixels of the small pictures that are kept of each case, in pictures.zip, for
    `compare`; 0 keeps none."""
    calibration: bool = False
    """Judge probabilities, too: the expected calibration error of each row whose prompts are for an
    image or a slice (calibration.md and .csv), and a reliability diagram."""
    seed: int = 0
    """Seed of the protocols' randomness and of the choice of few cases."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto`: a GPU if there is one."""
    threads: int | None = None
    """CPU threads; null: all cores."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.protocols:
            raise UserError("protocols: the list is empty; give at least one, such as [Clicks]")
        if self.tolerance < 0:
            raise UserError(f"tolerance is {self.tolerance}; it must not be negative")
        if self.thumbnails < 0:
            raise UserError(f"thumbnails is {self.thumbnails}; it must not be negative")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare runs that were evaluated on the same cases.

    The result folders may stand before all options: `compare results/a results/b`.
    """

    results: list[Path]
    """Output folders of `evaluate`, at least two; the first one is the baseline."""
    names: list[str] | None = None
    """Names of the runs in the tables; null: those of the folders."""
    output: Path | None = None
    """A Markdown file (.md), or a new folder for everything: comparison.md, .tex and .html, a CSV
    file for each table, and figures/. null prints the table of Dice by prompt alone, without
    p-values."""
    protocols: list[str] | None = None
    """Prompts to compare, as the rows of the results name them; null: all. Fewer comparisons need
    less correction of their p-values."""
    reference: str | None = None
    """Prompt of the baseline with which prompts are compared that it was not evaluated under, such
    as those of runs with other prompts or none; null: its first one."""
    cases: int = 3
    """Number of best cases to be shown side by side, of worst ones, and of those in which the runs
    differ most."""

    def __post_init__(self) -> None:
        if self.cases < 0:
            raise UserError(f"cases is {self.cases}; it must not be negative")
        if self.output is not None and self.output.suffix in (".csv", ".tex", ".html", ".pdf"):
            raise UserError(
                f"output: {self.output} is not a Markdown file (.md); give one, or a folder for"
                " Markdown, CSV, LaTeX and HTML together"
            )
        if len(self.results) < 2:
            raise UserError("results: give at least two folders, such as [results/a, results/b]")
        if self.names is not None and len(self.names) != len(self.results):
            counts = f"{len(self.names)} names for {len(self.results)} results"
            raise UserError(f"names: {counts}; give one each")


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """Shard, pretrain, adapt, evaluate and predict on a small data set; write report.html.

    Run it in the folder that holds configs/, pretrain/ and finetune/. The same command continues
    after an interruption.
    """

    input: Path | None = None
    """Medical Segmentation Decathlon or nnU-Net folder; by default real images that come with the
    installed packages. Its labelled volumes are split by case; meant for small sets."""
    output: Path = Path("out/quickstart")
    """Folder for everything that is made; report.html is in it."""
    pretrain_recipe: Path = Path("configs/pretrain/quickstart.yaml")
    """Recipe of stage one."""
    finetune_recipe: Path = Path("configs/finetune/quickstart.yaml")
    """Recipe of stage two."""
    cases: int = 12
    """At most this many held-out patients are evaluated."""
    threads: int | None = None
    """CPU threads of everything that computes; null: all cores."""

    def __post_init__(self) -> None:
        if self.cases < 1:
            raise UserError(f"cases is {self.cases}; it must be at least 1")
