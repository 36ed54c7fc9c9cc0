"""A labelled image as it is in use: encoded, and with what is random in its prompts."""

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.cases import LabelledCases, LabelledImage
from finetune.inference.prompted import PromptedImage
from finetune.inference.stacks import encode_around
from finetune.model.segmenter import Segmenter


def generator_of(seed: int, key: str) -> np.random.Generator:
    """Source of what is random in the prompts for an image or a volume.

    Args:
        key: Of the record; of a slice that is prompted by itself followed by `/` and its depth.
    """
    return np.random.default_rng([seed, zlib.crc32(key.encode())])


def encode_labelled(
    segmenter: Segmenter, cases: LabelledCases, image: LabelledImage, pixels: NDArray[Any]
) -> PromptedImage:
    """A labelled image, encoded; a slice with its neighbours where the model was trained so.

    Args:
        segmenter: The model, in evaluation mode.
        pixels: Those of `image`, as `cases.read` gave them.
    """
    if segmenter.stack == 1 or image.depth is None:
        return PromptedImage(segmenter, pixels)

    def read(depth: int) -> NDArray[Any]:
        slices: NDArray[Any] = cases.shards.record(image.record, slice(depth, depth + 1)).image
        return slices[0]

    count = cases.slices_of(image.record)
    return encode_around(segmenter, read, image.depth, count)[image.depth]
