"""The picture beside a mask: what it shows, and that it stays small."""

import numpy as np
import pytest
from PIL import Image

from finetune.inference.overlay import MASK_COLOUR, MASK_OPACITY, draw_overlay


def drawn(tmp_path, image, mask, *prompts) -> np.ndarray:
    draw_overlay(image, mask, tmp_path / "overlay.png", *prompts)
    return np.array(Image.open(tmp_path / "overlay.png"))


def blended(colour: int) -> list[int]:
    return [round(colour + (mask - colour) * MASK_OPACITY) for mask in MASK_COLOUR]


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((3000, 4000), (1000, 1334)),  # shrunk three times
        ((1600, 100), (1600, 100)),
        ((30, 40), (450, 600)),  # enlarged 15 times
        ((1, 3201), (1, 1067)),
    ],
)
def test_its_size_is_bounded(tmp_path, shape, size):
    assert drawn(tmp_path, np.zeros(shape, np.uint8), np.ones(shape, bool)).shape == (*size, 3)


@pytest.mark.parametrize("kind", ["grey", "colour", "16 bits"])
@pytest.mark.parametrize("side", [40, 1000, 3200])
def test_mask_outline_and_prompts_are_where_they_belong(tmp_path, kind, side):
    grey = np.full((side, side), 100, np.uint8)
    image = {"grey": grey, "colour": np.stack([grey] * 3, -1), "16 bits": grey * np.uint16(257)}
    mask = np.zeros((side, side), bool)
    mask[side // 4 : side // 2, side // 4 : side // 2] = True
    points = np.array([[side * 0.1, side * 0.8], [side * 0.9, side * 0.6]])
    box = np.array([0.7, 0.1, 0.95, 0.3]) * side
    picture = drawn(tmp_path, image[kind], mask, points, [1, 0], box).astype(int)
    scale = len(picture) / side

    def at(x: float, y: float) -> list[int]:
        return picture[round(y * side * scale), round(x * side * scale)].tolist()

    assert at(0.6, 0.8) == [100, 100, 100]
    assert np.abs(np.subtract(at(0.375, 0.375), blended(100))).max() <= 1
    assert picture[round(side / 4 * scale), round(0.375 * side * scale)].tolist() == [*MASK_COLOUR]
    outside = round(side / 4 * scale) - 1
    assert picture[outside, round(0.375 * side * scale)].tolist() == [100] * 3
    half = 0.5 / side  # a click is on the middle of its pixel
    assert at(0.1 + half, 0.8 + half) == [0, 255, 0] and at(0.9 + half, 0.6 + half) == [255, 0, 0]
    assert at(0.7, 0.2) == at(0.8, 0.1) == [0, 255, 0]
    assert at(0.8, 0.2) == [100] * 3


def test_nothing_found_leaves_the_image(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    assert np.array_equal(drawn(tmp_path, image, np.zeros((700, 900), bool)), image)
