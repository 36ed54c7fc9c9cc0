"""Embeddings of a frozen image encoder, computed once for each view and kept on disk.

Where its neck is trained, as that of an encoder of stage one is, what the neck is given is kept.

An entry is a file of its own, named after what it depends on and written whole or not at all, so
that processes and runs may share a folder and be killed at any time. One that is damaged counts as
missing: it is computed again, and written over.
"""

import hashlib
import json
import math
import secrets
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from data_prep.common.errors import UserError
from data_prep.common.files import write_json
from finetune.config import TrainConfig
from finetune.data.dataset import VIEWS_VERSION, SegmentationBatch, SegmentationDataset, View
from finetune.model.network import Network
from finetune.model.prompt_encoder import PROMPT_WIDTH
from finetune.model.segmenter import Segmenter
from pretrain.sizes import PATCH

NECK = "neck."
"""Begins the names of the image encoder's weights after its blocks."""
PARTIAL = ".partial"
"""End of the hidden names of files that are being written."""
LEFT_OVER = 3600.0
"""Seconds after which such a file is one that a killed process left."""
WITHOUT_EFFECT = ("shards", "split", "targets", "cases", "validation", "masks_per_image", "workers")
"""Data options that do not change what a view of a record looks like, or are told otherwise."""


class EmbeddingCache:
    """Embeddings of views, in a folder.

    Args:
        folder: Where entries are kept; made when the first is written.
        identity: All that decides an embedding besides its view. Each identity has a folder of its
            own inside `folder`, and is told in its `identity.json`.
        shape: (C, h, w) of an embedding.
        before_neck: Whether embeddings are those that the neck is given.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        shape: tuple[int, int, int],
        before_neck: bool = False,
    ) -> None:
        self.before_neck = before_neck
        text = json.dumps(identity, sort_keys=True, default=str)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.identity, self.shape = json.loads(text), shape
        self._can_write = True
        oldest = time.time() - LEFT_OVER
        for path in self.folder.glob(f"*/.*{PARTIAL}"):
            with suppress(OSError):  # another process may remove it at this moment
                if path.stat().st_mtime < oldest:
                    path.unlink()

    @property
    def entry_bytes(self) -> int:
        """Size of an embedding in single precision, the largest that an encoder yields."""
        return 4 * math.prod(self.shape)

    def find(self, batch: SegmentationBatch) -> SegmentationBatch:
        """The batch with the embeddings that are there. It runs in the loader's workers."""
        found = [self._read(view) for view in batch.views]
        kept = [embedding for embedding in found if embedding is not None]
        missing = [place for place, embedding in enumerate(found) if embedding is None]
        embeddings = torch.stack(kept) if kept else None
        return replace(batch, embeddings=embeddings, missing=missing)

    def complete(
        self, batch: SegmentationBatch, encode: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """The embeddings of all images: those found, and the others computed and kept.

        Args:
            batch: As from `find`, on the device that computes.
            encode: From images and valid pixels of some of the batch to their embeddings.

        Returns:
            (B, C, h, w), without gradient.
        """
        missing = batch.missing
        if not missing:
            assert batch.embeddings is not None  # each is found or missing
            return batch.embeddings
        with torch.no_grad():
            new = encode(batch.images[missing], batch.valid[missing])
        for place, embedding in zip(missing, new.cpu(), strict=True):
            self._write(batch.views[place], embedding)
        if batch.embeddings is None:
            return new
        whole = new.new_empty(len(batch.views), *self.shape)
        whole[missing] = new
        whole[[place for place in range(len(whole)) if place not in missing]] = batch.embeddings
        return whole

    def _path(self, view: View) -> Path:
        name = hashlib.sha256(json.dumps(view).encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name[2:]}.safetensors"

    def _read(self, view: View) -> Tensor | None:
        try:
            stored = load(self._path(view).read_bytes())
        except (OSError, SafetensorError):
            return None
        embedding, checksum = stored.get("embedding"), stored.get("crc32")
        if embedding is None or checksum is None or embedding.shape != self.shape:
            return None
        return embedding if int(checksum) == _crc32(embedding) else None

    def _write(self, view: View, embedding: Tensor) -> None:
        """Keep an embedding; where that is not possible, say so once and go on without."""
        if not self._can_write:
            return
        path = self._path(view)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
        entry = {"embedding": embedding.contiguous(), "crc32": torch.tensor(_crc32(embedding))}
        try:
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True, exist_ok=True)
                write_json(self.folder / "identity.json", self.identity)
            path.parent.mkdir(exist_ok=True)
            temporary.write_bytes(save(entry))  # not flushed to disk: damage would be noticed
            temporary.replace(path)
        except (OSError, UserError) as error:
            self._can_write = False
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            reason = error.strerror if isinstance(error, OSError) else error
            line = f"warning: {self.folder}: no more embeddings are kept ({reason})"
            print(line, file=sys.stderr, flush=True)


def open_cache(
    options: TrainConfig, segmenter: Segmenter, dataset: SegmentationDataset
) -> EmbeddingCache | None:
    """The cache that `data.cache` asks for, or None.

    Raises:
        UserError: More of the image encoder than its neck is trained: its embeddings change.
    """
    if options.data.cache is None:
        return None
    encoder = segmenter.image_encoder
    if isinstance(encoder, Network):
        raise UserError("data.cache: a whole network has no image encoder; leave data.cache out")
    trained = [name for name, each in encoder.named_parameters() if each.requires_grad]
    before_neck = any(name.startswith(NECK) for name in trained)
    trained = [name for name in trained if not name.startswith(NECK)]
    if trained:
        raise UserError(
            f"data.cache: the image encoder is trained ({len(trained)} parameters, first"
            f" image_encoder.{trained[0]}), so its embeddings change; leave data.cache out, or"
            " freeze it: --model.encoder_adapter null, nothing of it but the neck in"
            " model.trained, and --encoder or --sam"
        )
    data = asdict(options.data)
    changes = {k: v for k, v in data.items() if k not in (*WITHOUT_EFFECT, "views", "cache")}
    identity = {
        "encoder": weights_digest(encoder, but=NECK if before_neck else None),
        "image_size": options.model.image_size,
        "precision": options.precision,
        "data": dataset.cases.shards.fingerprint,
        "seed": options.seed,
        "views": VIEWS_VERSION,
        "changes": changes,
    }
    width = encoder.size.width if before_neck else PROMPT_WIDTH
    shape = shape_of(options.model.image_size, width)
    return EmbeddingCache(options.data.cache, identity, shape, before_neck)


def shape_of(image_size: int, width: int = PROMPT_WIDTH) -> tuple[int, int, int]:
    """(C, h, w) of the embedding of a square image."""
    return width, image_size // PATCH, image_size // PATCH


def weights_digest(module: nn.Module, but: str | None = None) -> str:
    """SHA-256 of all parameters and buffers of a module, with their names.

    Args:
        but: Leave out those whose names begin so.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if but is not None and name.startswith(but):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor.cpu()))
    return digest.hexdigest()


def _crc32(tensor: Tensor) -> int:
    return zlib.crc32(_bytes(tensor))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
