"""A step of training with prompts, on a segmenter that finds everything."""

import numpy as np
import torch
from torch import Tensor, nn

from finetune.data.dataset import SegmentationBatch
from finetune.model.decoder import Decoded
from finetune.model.prompt_encoder import Prompts

SIZE = 64


class Everything(nn.Module):
    """Stands in for a segmenter that finds the object everywhere, on padding too."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Prompts] = []
        self.multimask: list[bool] = []

    def decode(self, embeddings: Tensor, prompts: Prompts, multimask: bool = False) -> Decoded:
        """Of three masks the second is everywhere, and is expected to be best."""
        self.asked.append(prompts)
        self.multimask.append(multimask)
        count = len(prompts)
        everywhere = torch.ones(count, 1, SIZE // 4, SIZE // 4) + 0 * embeddings.sum()
        if not multimask:
            return Decoded(everywhere, torch.zeros(count, 1))
        low_res = torch.cat([-everywhere, everywhere, -2 * everywhere], 1)
        return Decoded(low_res, torch.tensor([[0.1, 0.9, 0.2]]).expand(count, 3))

    def upsample(self, low_res: Tensor) -> Tensor:
        return low_res


def padded_discs() -> tuple[Tensor, Tensor]:
    """Masks and valid areas (M, S, S): a disc at the edge of a narrow and of a low image."""
    rows, columns = np.ogrid[:SIZE, :SIZE]
    valid = np.zeros((2, SIZE, SIZE), bool)
    valid[0, :, :24], valid[1, :20] = True, True
    centres = [(30, 16), (12, 40)]
    masks = [(rows - y) ** 2 + (columns - x) ** 2 < 36 for y, x in centres]
    return torch.from_numpy(np.stack(masks)), torch.from_numpy(valid)


def batch_of(masks: Tensor, valid: Tensor) -> SegmentationBatch:
    """One mask for each image."""
    count = len(masks)
    images, targets = torch.zeros(count, 1, SIZE, SIZE), torch.zeros(count, dtype=torch.int64)
    keys = [f"image {index}" for index in range(count)]
    return SegmentationBatch(keys, images, valid, masks, torch.arange(count), targets)
