"""Memory and time of a recipe, without its data, its weights or a GPU."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from data_prep.common.errors import UserError
from pretrain.config import EstimateOptions
from pretrain.encoder.flops import TRAINING
from pretrain.encoder.sam import build_encoder
from pretrain.encoder.weights import choose_size, encoder_weights, find_weights, read_weights
from pretrain.engine.memory import pass_memory
from pretrain.engine.passes import divisors
from pretrain.engine.peaks import BF16, FP32, known_peak
from pretrain.objectives.together import PretrainModel
from pretrain.sizes import DEFAULT_SIZE
from pretrain.stage import build_dataset, build_objectives

TRAINED_BYTES = 16
"""Of a trained parameter: itself, its gradient, and AdamW's two averages, in fp32."""
BUCKET_BYTES = 4
"""Of a trained parameter's second gradient, where several processes exchange it."""
FROZEN_BYTES = 4
FIRST, SECOND = 32, 64
"""Images of the passes from which memory per image is computed."""
CONTEXT, USABLE = 1.0e9, 0.9
"""What CUDA takes for itself, and the share of the rest that tensors can fill."""


@dataclass(frozen=True)
class Estimate:
    """What a recipe takes."""

    parameters: int
    """That are trained."""
    fixed: float
    """Bytes that do not depend on the number of images in a pass."""
    per_image: float
    """Bytes of one image in a pass."""
    flops: float
    """Floating-point operations of training on one image."""
    share: int
    """Images of one step in one process."""
    passes: int
    """Per step."""
    seen: int
    """Images of the whole run, counted as often as they are seen."""
    hours: float
    gpus: int
    gpu: str
    mfu: float

    @property
    def memory(self) -> float:
        """Bytes of a pass."""
        return self.fixed + self.per_image * self.share / self.passes

    def lines(self) -> tuple[str, str]:
        """Memory and time, as the headers of the recipes have them."""
        devices = f"{self.gpus} {self.gpu}" if self.gpus > 1 else f"one {self.gpu}"
        images = self.share // self.passes
        passes = f"{self.passes} passes" if self.passes > 1 else "one pass"
        return (
            f"Memory: {self.fixed / 1e9:.1f} GB and {self.per_image / 1e6:.0f} MB per image of a"
            f" pass; {images} images, {passes} per step, make"
            f" {self.memory / 1e9:.0f} GB.",
            f"Time: {self.hours:,.0f} h on {devices} at {100 * self.mfu:.0f} % of its peak, for"
            f" {self.seen / 1e6:,.0f} M images of {self.flops / 1e9:,.0f} GFLOP.",
        )


@dataclass(frozen=True)
class Measured:
    """What decides memory and time of a pass."""

    trained: int
    """Parameters."""
    frozen: int
    """Parameters."""
    once: float
    """Bytes of a pass that do not depend on its images, beside parameters and gradients."""
    per_image: float
    """Bytes of one image in a pass."""
    flops: float
    """Floating-point operations of training on one image."""


def estimate(options: EstimateOptions, resolved: str) -> None:
    """Print what a recipe takes."""
    found = estimate_recipe(options)
    print(f"Parameters: {found.parameters / 1e6:.1f} M are trained.")
    for line in found.lines():
        print(line)
    print(
        "Memory is that of all tensors of a pass as on a CPU, counted and not allocated. The GPU's "
        f"own {CONTEXT / 1e9:.0f} GB and a tenth for gaps are left free where passes are chosen."
    )


def estimate_recipe(options: EstimateOptions) -> Estimate:
    """What a recipe takes.

    Raises:
        UserError: The number of images is not known, or no pass fits into the memory.
    """
    images = options.images or (len(build_dataset(options)) if options.data.shards else None)
    if images is None:
        raise UserError("how many images are there? name --data.shards, or give --images")
    share, steps = options.optim.share(options.gpus), options.optim.schedule(images).steps
    model = measure(options)
    each = TRAINED_BYTES + (BUCKET_BYTES if options.gpus > 1 else 0)
    fixed = each * model.trained + FROZEN_BYTES * model.frozen + model.once
    seen = steps * options.optim.batch_size
    peak = known_peak(options.gpu, BF16 if options.precision == BF16 else FP32)
    assert peak is not None  # checked with the options
    cost = (TRAINING + 1) / TRAINING if options.recompute_blocks else 1.0
    return Estimate(
        model.trained,
        fixed,
        model.per_image,
        model.flops,
        share,
        _passes(options, share, fixed, model.per_image),
        seen,
        seen * cost * model.flops / (options.gpus * peak * options.mfu) / 3600,
        options.gpus,
        options.gpu,
        options.mfu,
    )


def measure(options: EstimateOptions) -> Measured:
    """Build a recipe's model and run two passes of it, in shapes without numbers."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:  # any size, in seconds
        model = _build_model(options)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trained
    first, second = (_pass_bytes(options, model, mode, count) for count in (FIRST, SECOND))
    per_image = (second - first) / (SECOND - FIRST)
    once = max(0.0, first - FIRST * per_image)
    return Measured(trained, frozen, once, per_image, model.flops(options.image_size))


def _build_model(options: EstimateOptions) -> PretrainModel:
    size = options.encoder_size
    if size is None and options.start_from is not None:
        path = find_weights(options.start_from)
        size = choose_size(None, encoder_weights(read_weights(path)), path)
    encoder = build_encoder(size or DEFAULT_SIZE)
    encoder.recompute_blocks = options.recompute_blocks
    return PretrainModel(encoder, build_objectives(options, encoder.size.width))


def _pass_bytes(
    options: EstimateOptions, model: PretrainModel, mode: FakeTensorMode, count: int
) -> int:
    """Bytes of a pass of so many images beside parameters and gradients."""
    with mode:
        images = torch.zeros(count, 3, options.image_size, options.image_size)

    def one_pass() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == BF16):
            return model.total(model(images, torch.Generator().manual_seed(0)))

    return pass_memory(list(model.parameters()), one_pass) + images.nbytes


def _passes(options: EstimateOptions, share: int, fixed: float, per_image: float) -> int:
    """Passes per step: as given, or as few as fit.

    Raises:
        UserError: Not even one image fits.
    """
    if options.optim.accumulate != "auto":
        return options.optim.accumulate
    if options.memory is None:
        return 1
    room = USABLE * (options.memory * 1e9 - CONTEXT) - fixed
    fitting = [n for n in divisors(share) if share // n * per_image <= room]
    if not fitting:
        raise UserError(
            f"memory: {options.memory:g} GB hold {fixed / 1e9:.1f} GB of parameters and "
            f"{per_image / 1e6:.0f} MB of one image no more; take a smaller encoder_size"
        )
    return fitting[0]
