"""Speed of stage one as ratios within one run, with FLOPs and the share of the matrix-product rate.

What is compared runs in turn, so that a busy moment of the machine hits both; the best time of each
counts.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT
from timm.layers import resample_abs_pos_embed_nhwc
from torch import Tensor, nn

from data_prep.common.results import Results, processor
from pretrain.config import BenchmarkOptions
from pretrain.encoder.attention import BACKENDS, choose_backend, dense_positions, relative_biases
from pretrain.encoder.flops import encoder_flops
from pretrain.encoder.sam import SamEncoder, build_encoder, take
from pretrain.engine.cpu import keep_freed_memory
from pretrain.objectives import EMix, Inputs, MaskedAutoencoding, Plan, ShED, View
from pretrain.objectives.together import PretrainModel
from pretrain.sizes import ATTENTION_WINDOW, NATIVE_GRID, PATCH

PACKAGES = ("torch", "segment-anything", "timm")
"""Packages whose versions stand beside the figures."""

DEFAULT_ALLOCATOR = "stock, default allocator"
"""segment_anything's encoder where the C library gives freed memory back to the kernel."""


def benchmark(config: BenchmarkOptions, resolved: str) -> None:
    """Speed of encoder and objectives, as ratios from one run."""
    name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name if config.device == "auto" else config.device)
    machine = f"{processor()}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    title = f"Encoder and objectives: {machine}"
    results = Results(title, "python -m pretrain benchmark", config, PACKAGES)
    torch.manual_seed(0)
    clock = Clock(device, config.repeats)
    untuned: dict[int, dict[str, float]] = {}
    if device.type == "cpu":
        untuned = {size: stock_seconds(clock, config, size) for size in config.sizes}
        keep_freed_memory()
    bench = Bench(config, device, clock, results, matrix_rates(clock, device))
    speeds = ", ".join(
        f"{rate / 1e9:.0f} GFLOP/s in {dtype}" for dtype, rate in bench.rates.items()
    )
    results.add(f"Best of {config.repeats} calls. A product of large matrices reaches {speeds}.")
    with torch.random.fork_rng():
        attention_table(bench)
    for size in config.sizes:
        dense_table(bench, size, untuned.get(size, {}))
    objective_table(bench)
    results.save()


def images_of(config: BenchmarkOptions, pixels: int, device: torch.device) -> int:
    """Images in a batch of this size."""
    return config.batch_size if pixels <= 224 or device.type == "cuda" else 1


class Clock:
    """Times calls in turn.

    Args:
        repeats: Timed calls of each kind.
    """

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def __call__(self, calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        """Best seconds of each call."""
        best: dict[str, float] = {}
        for round_number in range(self.repeats + 1):
            for name, call in calls.items():
                self._wait()
                start = time.perf_counter()
                call()
                self._wait()
                seconds = time.perf_counter() - start
                if round_number:
                    best[name] = min(seconds, best.get(name, seconds))
        return best

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Bench:
    """What every table needs."""

    config: BenchmarkOptions
    device: torch.device
    clock: Clock
    results: Results
    rates: dict[str, float]
    """FLOP/s of a matrix product by precision."""


def matrix_rates(clock: Clock, device: torch.device) -> dict[str, float]:
    """FLOP/s of a matrix product of an encoder's shape, the practical ceiling of what follows."""
    rows, inner, columns, products = 4096, 768, 3072, 4
    calls: dict[str, Callable[[], object]] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(rows, inner, device=device, dtype=dtype)
        b = torch.randn(inner, columns, device=device, dtype=dtype)
        out = torch.empty(rows, columns, device=device, dtype=dtype)
        calls[name] = partial(_products, a, b, out, products)
    flops = products * 2 * rows * inner * columns
    return {name: flops / seconds for name, seconds in clock(calls).items()}


def _products(a: Tensor, b: Tensor, out: Tensor, count: int) -> None:
    for _ in range(count):
        torch.mm(a, b, out=out)


def attention_table(bench: Bench) -> None:
    """Milliseconds of each attention backend, from which `choose_backend` is set."""
    bench.results.add("Attention of 12 heads of 64 channels, ms forward / forward + backward.")
    names = [name for name in BACKENDS if bench.device.type == "cpu" or name != "blockwise"]
    rows = attention_rows(bench.clock, bench.device, names, bench.config.sizes)
    bench.results.table(["sequences", "grid", "precision", *names, "chosen"], rows)


def attention_rows(
    clock: Clock, device: torch.device, names: list[str], sizes: Sequence[int]
) -> Iterator[list[str]]:
    """One row per grid and precision: a window of tokens, and all tokens of images of `sizes`."""
    cpu = device.type == "cpu"
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    for side in sorted({ATTENTION_WINDOW, *(size // PATCH for size in sizes)}):
        batch = 25 if side <= ATTENTION_WINDOW else 1
        positions = dense_positions(side, side, device)
        for dtype_name, dtype in dtypes.items():
            shape = (batch if cpu else 8 * batch, 12, side * side, 64)
            q, k, v = (torch.randn(shape, device=device, dtype=dtype) for _ in "qkv")
            rows, columns = (torch.randn(2 * side - 1, 64).to(q) for _ in "hw")
            inputs = [q, k, v, *relative_biases(q, rows, columns, positions)]
            leaves = [t.detach().requires_grad_() for t in inputs]

            def forward(backend: Callable[..., Tensor], inputs: list[Tensor] = inputs) -> None:
                with torch.no_grad():
                    backend(*inputs, positions, 0.125)  # noqa: B023 (called within this turn)

            def train(backend: Callable[..., Tensor], leaves: list[Tensor] = leaves) -> None:
                out = backend(*leaves, positions, 0.125)  # noqa: B023
                torch.autograd.grad(out.sum(), leaves)

            chosen = choose_backend(positions, device, dtype)
            fwd = clock({name: partial(forward, BACKENDS[name]) for name in names})
            both = clock({name: partial(train, BACKENDS[name]) for name in names})
            cells = [f"{1e3 * fwd[name]:.1f} / {1e3 * both[name]:.1f}" for name in names]
            yield [str(shape[0]), f"{side} x {side}", dtype_name, *cells, chosen]


def stock_encoder(encoder: SamEncoder, pixels: int) -> ImageEncoderViT:
    """segment_anything's encoder with the same weights, for images of `pixels`."""
    size = encoder.size
    stock = ImageEncoderViT(
        img_size=NATIVE_GRID * PATCH,
        depth=size.depth,
        embed_dim=size.width,
        num_heads=size.heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=ATTENTION_WINDOW,
        global_attn_indexes=size.global_blocks,
    ).to(encoder.pos_embed.device)
    stock.load_state_dict(encoder.state_dict())
    grid = [pixels // PATCH] * 2
    stock.pos_embed = nn.Parameter(resample_abs_pos_embed_nhwc(stock.pos_embed.detach(), grid))
    return stock


def forward(model: nn.Module, images: Tensor, bf16: bool) -> None:
    """A forward pass without gradient."""
    with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        model(images)


def train(model: nn.Module, images: Tensor, bf16: bool) -> None:
    """A forward and backward pass."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        loss = model(images).float().square().mean()
    loss.backward()
    model.zero_grad(set_to_none=True)


KINDS = (("forward", forward, 1), ("forward + backward", train, 3))
"""Name, call, and cost in forward passes."""


def stock_seconds(clock: Clock, config: BenchmarkOptions, pixels: int) -> dict[str, float]:
    """Seconds of segment_anything's encoder on a CPU, in fp32, where freed memory is not kept."""
    stock = stock_encoder(build_encoder(config.encoder_size), pixels)
    images = torch.randn(images_of(config, pixels, clock.device), 3, pixels, pixels)
    return {
        kind: clock({kind: partial(call, stock, images, False)})[kind] for kind, call, _ in KINDS
    }


def dense_table(bench: Bench, pixels: int, untuned: dict[str, float]) -> None:
    """The dense encoder against segment_anything's.

    Args:
        untuned: Seconds of segment_anything's by kind, where freed memory is not kept.
    """
    config, device = bench.config, bench.device
    ours = build_encoder(config.encoder_size).to(device)
    models: dict[str, nn.Module] = {"stock": stock_encoder(ours, pixels), "ours": ours}
    if config.compile and device.type == "cuda":
        compiled = copy.deepcopy(ours)
        for block in compiled.blocks:
            block.compile()
        models["ours compiled"] = compiled
    batch = images_of(config, pixels, device)
    images = torch.randn(batch, 3, pixels, pixels, device=device)
    flops = batch * encoder_flops(ours.size, pixels // PATCH)

    def rows() -> Iterator[list[str]]:
        for kind, call, factor in KINDS:
            seconds = bench.clock(
                {
                    f"{name} {precision}": partial(call, model, images, precision == "bf16")
                    for name, model in models.items()
                    for precision in ("fp32", "bf16")
                }
            )
            if kind in untuned:
                seconds[f"{DEFAULT_ALLOCATOR} fp32"] = untuned[kind]
            for name, value in seconds.items():
                model, precision = name.rsplit(" ", 1)
                share = factor * flops / value / bench.rates[precision]
                speed = f"{seconds['stock fp32'] / value:.2f} x"
                shape = f"{batch} x {pixels} x {pixels}"
                yield [shape, kind, model, precision, f"{value:.3f}", speed, f"{share:.0%}"]

    kept = ""
    if untuned:
        kept = (
            f" Freed memory is kept for the next tensor, as training does on a CPU, but not in "
            f"the rows of {DEFAULT_ALLOCATOR}."
        )
    bench.results.add(f"Dense {config.encoder_size}, {flops / 1e9:.0f} GFLOP forward.{kept}")
    header = ["images", "pass", "encoder", "precision", "seconds", "speed against stock fp32"]
    bench.results.table([*header, "share of the matrix rate"], rows())


def objective_table(bench: Bench) -> None:
    """Steps of the objectives against a dense pass, at 224 pixels."""
    config, device = bench.config, bench.device
    encoder = build_encoder(config.encoder_size).to(device)
    width = encoder.size.width
    images = torch.randn(config.batch_size, 3, 224, 224, device=device)
    precision = "bf16" if device.type == "cuda" else "fp32"

    def step(model: PretrainModel) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            total = model.total(model(images, torch.Generator().manual_seed(0)))
        total.backward()
        model.zero_grad(set_to_none=True)

    def dense() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = encoder.forward_tokens(images).float().square().mean()
        loss.backward()
        encoder.zero_grad(set_to_none=True)

    def build(keep_ratio: float) -> PretrainModel:
        objectives = {
            "mae": MaskedAutoencoding(width),
            "emix": EMix(width, keep_ratio=keep_ratio),
            "shed": ShED(width, keep_ratio=keep_ratio),
        }
        return PretrainModel(encoder, objectives).to(device)

    calls: dict[str, Callable[[], None]] = {
        "dense forward + backward": dense,
        "MAE, 75 % dropped": partial(
            step, PretrainModel(encoder, {"mae": MaskedAutoencoding(width)}).to(device)
        ),
        "MAE, mask tokens in the encoder": partial(
            step, PretrainModel(encoder, {"mae": _MaskTokensInEncoder(width)}).to(device)
        ),
        "three objectives, shared 25 %": partial(step, build(0.25)),
        "three objectives, full tokens": partial(step, build(1.0)),
    }
    seconds = bench.clock(calls)
    dense_seconds = seconds["dense forward + backward"]
    flops = 3 * config.batch_size * encoder_flops(encoder.size, ATTENTION_WINDOW, neck=False)
    share = flops / dense_seconds / bench.rates[precision]
    bench.results.add(
        f"Training steps of {config.batch_size} images of 224 pixels in {precision}, without the "
        f"optimiser. The dense pass runs at {share:.0%} of the matrix rate."
    )
    rows = [[name, f"{s:.3f}", f"{s / dense_seconds:.2f} x"] for name, s in seconds.items()]
    bench.results.table(["step", "seconds", "cost against dense"], rows)
    faster = seconds["MAE, mask tokens in the encoder"] / seconds["MAE, 75 % dropped"]
    bench.results.add(f"Dropping tokens makes the MAE step {faster:.2f} times faster.")


class _MaskTokensInEncoder(MaskedAutoencoding):
    """The same loss with mask tokens carried through the encoder, as in SimMIM: for comparison."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.encoder_mask_token = nn.Parameter(torch.zeros(1, 1, width))

    def plan(self, inputs: Inputs) -> Plan:
        kept = super().plan(inputs)
        keep = kept.views[0].keep
        assert keep is not None  # masked autoencoding always drops some
        keep = keep.to(inputs.images.device)
        is_kept = torch.zeros(inputs.embeddings.shape[:2], device=keep.device).scatter_(1, keep, 1)
        mixed = torch.where(is_kept[..., None] > 0, inputs.embeddings, self.encoder_mask_token)
        return Plan([View(mixed, None)], lambda encoded: kept.loss([take(encoded[0], keep)]))
