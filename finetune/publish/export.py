"""An adapted model as a checkpoint of segment_anything, its adapters merged into the weights."""

from pathlib import Path

import torch

from data_prep.common.errors import UserError
from data_prep.common.files import atomic_path
from finetune.heads import SamedDecoder
from finetune.inference.loading import load_segmenter
from finetune.model.mask_decoder import DECODER_WIDTH, SamDecoder
from finetune.model.segmenter import TEXT_PREFIX, Segmenter
from finetune.publish.config import ExportOptions
from pretrain.encoder.block import EncoderBlock
from pretrain.encoder.sam import SamEncoder
from pretrain.publish.export import building_lines
from pretrain.sizes import NATIVE_GRID, PATCH


def export(config: ExportOptions, resolved: str) -> None:
    """Write the model of a run as segment_anything has it, and print how it is loaded there."""
    if config.output.exists():
        raise UserError(f"output: {config.output} is there already; name another")
    last = config.checkpoint == "last"
    segmenter = load_segmenter(config.run, torch.device("cpu"), config.encoder, config.sam, last)
    try:
        merge_adapters(segmenter)
    except UserError as error:
        raise UserError(
            f"run: {config.run}: {error}; share it as it is with `python -m finetune publish`"
        ) from None
    weights = segmenter.state_dict()
    config.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(config.output) as temporary:
        torch.save({k: v for k, v in weights.items() if not k.startswith(TEXT_PREFIX)}, temporary)
    print("\n".join(loading_lines(segmenter, config.output)))


def merge_adapters(segmenter: Segmenter) -> None:
    """Merge the adapters into the weights that they change, so that SAM alone gives equal masks.

    Raises:
        UserError: An adapter that cannot be merged, or a decoder that SAM does not have. The model
            is to be dropped then, as some adapters may be merged already.
    """
    decoder = segmenter.decoder
    if not isinstance(decoder, SamDecoder):
        raise UserError(f"decoder {type(decoder).__name__} is not one of segment_anything's")
    for layer in decoder.mask_decoder.transformer.layers:
        if layer.adapter is not None:
            name = type(layer.adapter).__name__
            raise UserError(f"{name} cannot be merged into the weights of SAM")
    assert isinstance(segmenter.image_encoder, SamEncoder)  # as the decoder is SAM's
    for block in segmenter.image_encoder.blocks:
        assert isinstance(block, EncoderBlock)
        if block.adapter is not None:
            block.adapter.merge(block)
            block.adapter = None


def loading_lines(segmenter: Segmenter, path: Path) -> list[str]:
    """Lines of Python that load an exported checkpoint as `sam`, and what else there is to know."""
    assert isinstance(segmenter.image_encoder, SamEncoder)
    decoder, size = segmenter.decoder, segmenter.image_encoder.size
    if isinstance(decoder, SamedDecoder):
        names = ", ".join(segmenter.targets)
        lines = [
            *building_lines(size),
            "import torch; from segment_anything.modeling import MaskDecoder;"
            f" sam.mask_decoder = MaskDecoder(num_multimask_outputs={len(segmenter.targets)},"
            f" transformer=sam.mask_decoder.transformer, transformer_dim={DECODER_WIDTH});"
            f" sam.load_state_dict(torch.load({str(path)!r}, weights_only=True))",
            "without prompts and with return_logits=True, multimask_output=True gives"
            f" {names}, and multimask_output=False the background; the largest is what a pixel is",
        ]
    else:
        lines = building_lines(size, f"checkpoint={str(path)!r}")
    pixels, grid = segmenter.image_size, segmenter.image_size // PATCH
    if grid != NATIVE_GRID:
        lines += [
            f"it was trained at {pixels} pixels, and segment_anything works at"
            f" {NATIVE_GRID * PATCH}; this sets it to {pixels}:",
            "from torch.nn.functional import interpolate; encoder, prompts = sam.image_encoder,"
            " sam.prompt_encoder; encoder.pos_embed.data = interpolate("
            f"encoder.pos_embed.data.permute(0, 3, 1, 2), ({grid}, {grid}), mode='bicubic',"
            " antialias=True).permute(0, 2, 3, 1);"
            f" encoder.img_size = {pixels}; prompts.input_image_size = ({pixels}, {pixels});"
            f" prompts.image_embedding_size = ({grid}, {grid})",
        ]
    if segmenter.text_encoder is not None:
        lines.append("its text prompts are left out: segment_anything has none")
    return lines
