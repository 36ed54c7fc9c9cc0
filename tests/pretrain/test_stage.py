"""What stage one draws while it trains."""

import numpy as np
import torch
from PIL import Image

from data_prep.__main__ import main as data_prep
from data_prep.loader.mixture import ShardMixture
from pretrain.encoder.pixels import normalise_pixels
from pretrain.stage import images_to_draw
from pretrain.transform import PretrainTransform


def test_drawn_images_show_the_most_in_their_part_of_the_set(tmp_path) -> None:
    for number in range(12):
        pixels = np.full((64, 64), 20, np.uint8)
        pixels[:, :32] += 10 * number
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    options = ["--layout=folder", f"--input={tmp_path}", f"--output={tmp_path / 'shards'}"]
    data_prep(["shard", *options])
    dataset = ShardMixture([tmp_path / "shards"], transform=PretrainTransform(32, 1.0))
    images = [dataset[index][0].float() for index in range(12)]
    assert len({float(image.std()) for image in images}) == 12
    drawn = images_to_draw(dataset, count=3)
    assert drawn.shape == (3, 3, 32, 32)
    best = [max(images[start : start + 4], key=torch.std) for start in (0, 4, 8)]
    assert torch.equal(drawn, normalise_pixels(torch.stack(best)))
    assert torch.equal(images_to_draw(dataset, count=3), drawn)
    assert len(images_to_draw(dataset, count=3, among=2)) == 2
