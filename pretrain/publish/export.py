"""An encoder in the forms of segment_anything, transformers and timm, whole or not at all."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from segment_anything.build_sam import _build_sam, sam_model_registry
from timm.layers import resample_abs_pos_embed_nhwc
from torch import Tensor
from torch.nn.functional import interpolate

from data_prep.common.errors import UserError
from data_prep.common.files import atomic_path, new_folder, use_umask, write_json
from pretrain.encoder.sam import SamEncoder
from pretrain.encoder.weights import (
    SAM_DECODER_PREFIXES,
    SAM_ENCODER_PREFIX,
    find_weights,
    load_strictly,
    read_weights,
)
from pretrain.publish.config import ExportOptions
from pretrain.sizes import ATTENTION_WINDOW, NATIVE_GRID, PATCH, EncoderSize, size_name

NECK_CHANNELS = 256
"""Channels of SAM's image embedding."""

TO_TRANSFORMERS = (
    (r"^blocks\.(\d+)\.norm", r"layers.\1.layer_norm"),
    (r"^blocks\.", "layers."),
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^neck\.0\.", "neck.conv1."),
    (r"^neck\.1\.", "neck.layer_norm1."),
    (r"^neck\.2\.", "neck.conv2."),
    (r"^neck\.3\.", "neck.layer_norm2."),
    (r"^", "vision_encoder."),
)
"""Substitutions that turn SAM's names into those of transformers' `SamVisionModel`."""

TIMM_NAMES = {
    "vit_b": "samvit_base_patch16",
    "vit_l": "samvit_large_patch16",
    "vit_h": "samvit_huge_patch16",
}
"""Names in timm of the sizes that it has."""


def export(config: ExportOptions, resolved: str) -> None:
    """Write an encoder so that another library loads it, and print how."""
    if config.output.is_file() or (config.output.is_dir() and any(config.output.iterdir())):
        raise UserError(f"output: {config.output} is there already; name another")
    encoder = SamEncoder.from_pretrained(config.encoder)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    print("\n".join(WRITERS[config.to](encoder, config)))


def to_segment_anything(encoder: SamEncoder, config: ExportOptions) -> list[str]:
    """Write a whole SAM state dict; gives lines that say how it is loaded."""
    source = config.sam or config.encoder
    decoder = {
        name: tensor
        for name, tensor in read_weights(find_weights(source)).items()
        if name.startswith(SAM_DECODER_PREFIXES)
    }
    if config.sam is not None and not decoder:
        raise UserError(f"sam: {config.sam} holds no prompt encoder and mask decoder")
    weights = segment_anything_weights(encoder, decoder, source)
    with atomic_path(config.output) as temporary:
        torch.save(weights, temporary)
    lines = building_lines(encoder.size, f"checkpoint={str(config.output)!r}")
    if not decoder:
        lines.append(
            "prompt encoder and mask decoder are new and untrained; --sam FILE gives SAM's"
        )
    if not decoder or config.sam is not None:
        lines.append("masks need training first (finetune): pretraining does not train the neck")
    return lines


def building_lines(size: EncoderSize, arguments: str = "") -> list[str]:
    """A line of Python that builds `sam` by segment_anything; before it one that explains it.

    Args:
        size: Of the image encoder.
        arguments: Further arguments of the builder.
    """
    name = size_name(size)
    if name in sam_model_registry:
        line = f'sam_model_registry["{name}"]({arguments})'
        return [f"from segment_anything import sam_model_registry; sam = {line}"]
    parts = f"{size.width}, {size.depth}, {size.heads}, {list(size.global_blocks)}"
    call = f"_build_sam({', '.join(filter(None, (parts, arguments)))})"
    return [
        f"segment_anything's registry has no {name}; its builder makes one:",
        f"from segment_anything.build_sam import _build_sam; sam = {call}",
    ]


def to_transformers(encoder: SamEncoder, config: ExportOptions) -> list[str]:
    """Write a folder of transformers' `SamVisionModel`; gives lines that say how it is loaded."""
    pixels = config.image_size or NATIVE_GRID * PATCH
    weights = transformers_weights(encoder, pixels)
    documents = {
        "config": transformers_config(encoder, pixels),
        "preprocessor_config": transformers_preprocessing(encoder, pixels),
    }
    _write_folder(config.output, weights, documents)
    lines = [
        "from transformers import SamVisionModel;"
        f" model = SamVisionModel.from_pretrained({str(config.output)!r})",
        f"it takes images of {pixels} x {pixels} pixels only",
    ]
    if pixels != encoder.image_size:
        lines[-1] += f"; the encoder was trained at {encoder.image_size}, see --image_size"
    return lines


def to_timm(encoder: SamEncoder, config: ExportOptions) -> list[str]:
    """Write a folder of a timm model; gives lines that say how it is loaded."""
    _write_folder(config.output, timm_weights(encoder), {"config": timm_config(encoder)})
    return [
        "import timm, torch; from functools import partial;"
        f" model = timm.create_model({f'local-dir:{config.output}'!r}, pretrained=True,"
        " norm_layer=partial(torch.nn.LayerNorm, eps=1e-6))",
        "forward_features() gives SAM's embedding; norm_layer is SAM's, timm's own has an eps of"
        " 1e-5",
    ]


WRITERS: dict[str, Callable[[SamEncoder, ExportOptions], list[str]]] = {
    "segment_anything": to_segment_anything,
    "transformers": to_transformers,
    "timm": to_timm,
}


def segment_anything_weights(
    encoder: SamEncoder, decoder: dict[str, Tensor], source: str | Path
) -> dict[str, Tensor]:
    """State dict of segment_anything's `Sam`.

    Args:
        decoder: Prompt encoder and mask decoder with SAM's names; empty for new ones, which are
            the same each time.
        source: Where they are from.

    Raises:
        UserError: They are not SAM's.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sam = _build_sam(PATCH, 0, 1, [])  # all but the image encoder has one size
    for prefix in SAM_DECODER_PREFIXES if decoder else ():
        part = {k.removeprefix(prefix): v for k, v in decoder.items() if k.startswith(prefix)}
        load_strictly(sam.get_submodule(prefix.rstrip(".")), part, source)
    rest = {k: v for k, v in sam.state_dict().items() if k.startswith(SAM_DECODER_PREFIXES)}
    return {f"{SAM_ENCODER_PREFIX}{k}": v for k, v in encoder.state_dict().items()} | rest


def transformers_weights(encoder: SamEncoder, pixels: int) -> dict[str, Tensor]:
    """State dict of transformers' `SamVisionModel` for images of `pixels` x `pixels`.

    That model does not interpolate its position table, so both are brought to its size here as
    SAM's own forward pass would bring them.
    """
    weights, grid = dict(encoder.state_dict()), pixels // PATCH
    weights["pos_embed"] = resample_abs_pos_embed_nhwc(weights["pos_embed"], [grid, grid])
    for block in encoder.size.global_blocks:
        for axis in "hw":
            name = f"blocks.{block}.attn.rel_pos_{axis}"
            table = weights[name].T[None]  # (1, d, 2 n - 1)
            weights[name] = interpolate(table, 2 * grid - 1, mode="linear")[0].T
    renamed = {}
    for name, tensor in weights.items():
        for pattern, replacement in TO_TRANSFORMERS:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def transformers_config(encoder: SamEncoder, pixels: int) -> dict[str, Any]:
    """`config.json` of transformers' `SamVisionModel`."""
    size = encoder.size
    return {
        "architectures": ["SamVisionModel"],
        "model_type": "sam_vision_model",
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "global_attn_indexes": list(size.global_blocks),
        "window_size": ATTENTION_WINDOW,
        "image_size": pixels,
        "patch_size": PATCH,
        "num_channels": 3,
        "output_channels": NECK_CHANNELS,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "use_abs_pos": True,
        "use_rel_pos": True,
    }


def transformers_preprocessing(encoder: SamEncoder, pixels: int) -> dict[str, Any]:
    """`preprocessor_config.json` of transformers' `SamImageProcessor`."""
    mean, std = _unit_scale(encoder)
    return {
        "image_processor_type": "SamImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"longest_edge": pixels},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
        "do_pad": True,
        "pad_size": {"height": pixels, "width": pixels},
    }


def timm_weights(encoder: SamEncoder) -> dict[str, Tensor]:
    """State dict of timm's `VisionTransformerSAM` without a classifier."""
    return {k.replace(".mlp.lin", ".mlp.fc"): v for k, v in encoder.state_dict().items()}


def timm_config(encoder: SamEncoder) -> dict[str, Any]:
    """`config.json` of a timm model; sizes that timm does not name are variants of its base."""
    mean, std = _unit_scale(encoder)
    size = encoder.size
    return {
        "architecture": TIMM_NAMES.get(size_name(size), TIMM_NAMES["vit_b"]),
        "num_classes": 0,
        "num_features": NECK_CHANNELS,
        "model_args": {
            "embed_dim": size.width,
            "depth": size.depth,
            "num_heads": size.heads,
            "global_attn_indexes": list(size.global_blocks),
        },
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [3, encoder.image_size, encoder.image_size],
            "fixed_input_size": False,
            "pool_size": None,
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": mean,
            "std": std,
            "first_conv": "patch_embed.proj",
            "classifier": "head.fc",
        },
    }


def _unit_scale(encoder: SamEncoder) -> tuple[list[float], list[float]]:
    """Mean and deviation of pixels on [0, 1]."""
    return [m / 255 for m in encoder.pixel_mean], [s / 255 for s in encoder.pixel_std]


def _write_folder(folder: Path, weights: dict[str, Tensor], documents: dict[str, Any]) -> None:
    with new_folder(folder) as temporary:
        path = temporary / "model.safetensors"
        tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
        save_file(tensors, path, metadata={"format": "pt"})
        use_umask(path)  # safetensors makes it readable by its owner alone
        for name, document in documents.items():
            write_json(temporary / f"{name}.json", document)
