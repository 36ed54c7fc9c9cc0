"""What a mask image means, or why that is not certain."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from data_prep.readers.masks import read_label_map
from data_prep.records import Unreadable

PIXELS = 10**6
DISC = np.hypot(*np.mgrid[-20:20, -25:25]) < 12


def binary_mask(path, threshold=None):
    return read_label_map(path, PIXELS, threshold, binary=True)


def palette_image(indices, colours):
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette([channel for colour in colours for channel in colour])
    return image


def test_the_same_disc_in_every_plain_form(tmp_path):
    black, white, red = (0, 0, 0), (255, 255, 255), (200, 0, 0)
    forms = {
        "1-bit": Image.fromarray(DISC),
        "ones": Image.fromarray(DISC.astype(np.uint8)),
        "white": Image.fromarray(np.uint8(255) * DISC),
        "rgb": Image.fromarray(np.uint8(255) * DISC).convert("RGB"),
        "rgba": Image.fromarray(np.uint8(255) * DISC).convert("RGBA"),
        "palette": palette_image(DISC, [black, white]),
        "palette from white to black": palette_image(~DISC, [white, black]),
        "palette of colours": palette_image(DISC, [white, red]),
    }
    for name, image in forms.items():
        path = tmp_path / f"{name}.png"
        image.save(path)
        assert np.array_equal(binary_mask(path), DISC), name
        if name == "palette of colours":
            with pytest.raises(Unreadable, match="is coloured"):
                binary_mask(path, 128)
        elif name == "ones":
            with pytest.raises(Unreadable, match="values 0 and 1, both below --threshold 128;"):
                binary_mask(path, 128)
        else:
            assert np.array_equal(binary_mask(path, 128), DISC), name


def test_soft_edges_need_a_threshold_which_the_reason_proposes(tmp_path):
    white = Image.fromarray(np.uint8(255) * DISC)
    white.save(tmp_path / "mask.jpg", quality=75)
    white.filter(ImageFilter.GaussianBlur(1)).save(tmp_path / "mask.png")
    for path in (tmp_path / "mask.jpg", tmp_path / "mask.png"):
        with pytest.raises(Unreadable, match=r"from 0 to 255: .* --threshold \(such as 128\)"):
            binary_mask(path)
        assert (binary_mask(path, 128) != DISC).mean() < 0.01


def test_colours_and_partial_transparency_are_refused(tmp_path):
    coloured = np.zeros((*DISC.shape, 4), np.uint8)
    coloured[..., 3] = 255
    coloured[DISC, 0] = 200
    see_through = np.full_like(coloured, 255)
    see_through[..., 3] = 255 * DISC
    for name, pixels, reason in (
        ("coloured", coloured, "its mask is coloured .*; give --colors to layout pairs,"),
        ("clear", see_through, "its mask is partly transparent"),
    ):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        for threshold in (None, 128):
            with pytest.raises(Unreadable, match=reason):
                binary_mask(tmp_path / f"{name}.png", threshold)


def test_labels_of_a_palette_are_its_indices(tmp_path):
    indices = np.where(DISC, 2, 0) + np.eye(40, 50, dtype=int)
    greys = [(level, level, level) for level in (0, 90, 170, 255)]
    palette_image(indices, greys).save(tmp_path / "mask.png")
    assert np.array_equal(
        read_label_map(tmp_path / "mask.png", PIXELS, None, binary=False), indices
    )


def test_an_empty_mask_stays_empty_under_a_threshold(tmp_path):
    Image.fromarray(np.uint8(0) * DISC).save(tmp_path / "mask.png")
    assert not binary_mask(tmp_path / "mask.png", 128).any()


def test_masks_have_the_bounds_of_images(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    (tmp_path / "mask.jpg").write_bytes(data[:-2] + scan * 100 + data[-2:])
    with pytest.raises(Unreadable, match=r"its mask: a JPEG of 1\d\d scans, more than 100"):
        read_label_map(tmp_path / "mask.jpg", 10_000, 128, binary=True)
    (tmp_path / "mask.jpg").write_bytes(data)
    with pytest.raises(Unreadable, match="its mask: 80 x 60 pixels exceed max_pixels"):
        read_label_map(tmp_path / "mask.jpg", 4799, 128, binary=True)
    assert not read_label_map(tmp_path / "mask.jpg", 4800, 128, binary=True).any()
