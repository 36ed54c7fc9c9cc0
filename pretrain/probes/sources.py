"""The encoders that stand beside each other in a probe."""

from pathlib import Path
from typing import Any

import torch
import yaml

from data_prep.common.errors import UserError
from pretrain.encoder.sam import SamEncoder, build_encoder
from pretrain.encoder.weights import find_weights
from pretrain.engine.checkpoint import Checkpoint
from pretrain.probes.judge import ENCODER
from pretrain.sizes import EncoderSize

UNTRAINED, START = "untrained", "start"
DEFAULT_IMAGE_SIZE = 224


def untrained(size: EncoderSize, seed: int) -> SamEncoder:
    """The encoder that a run from scratch begins with, under this seed.

    PyTorch's global random state is left as it was.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SamEncoder(size)


def encoders_of(source: str, start_from: str = "auto") -> tuple[dict[str, SamEncoder], int]:
    """An encoder, its untrained form and the one that its run started from; and its image size.

    Args:
        source: Run folder, weights file or Hub name.
        start_from: The latter; `auto` takes it from the run's config, `none` leaves it out.

    Raises:
        UserError: Weights that are not there or do not fit.
    """
    encoder = build_encoder(None, source)
    config = _run_config(Path(source))
    encoders = {ENCODER: encoder}
    start = config.get("start_from") if start_from == "auto" else start_from
    if start is not None and start != "none":
        try:
            encoders[START] = build_encoder(None, start)
        except UserError as error:
            if start_from != "auto":
                raise
            raise UserError(
                f"{source} started from {start}, which cannot be found ({error}); give"
                " --start_from PATH, or none to leave it out"
            ) from None
        if encoders[START].size != encoder.size:
            raise UserError(f"start_from: {start} is of another size than {source}")
    encoders[UNTRAINED] = untrained(encoder.size, int(config.get("seed", 0)))
    weights = find_weights(source)
    document = Checkpoint(weights.parent).document(weights.stem) or {}
    return encoders, int(document.get("image_size", DEFAULT_IMAGE_SIZE))


def _run_config(run: Path) -> dict[str, Any]:
    """The options of a run of stage one; none of what is no run folder."""
    path = run / "config.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    return values if isinstance(values, dict) and "objectives" in values else {}
