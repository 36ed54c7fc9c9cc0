"""Masks in colours: each pixel is the named colour, or the mask is refused with the other one."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from data_prep.common.errors import UserError
from data_prep.readers.colours import common_colours, parse_colours
from data_prep.readers.masks import read_colour_map, read_label_map
from data_prep.records import Unreadable

BLACK, RED, GREEN, BLUE = (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)
COLOURS = [BLACK, RED, GREEN, BLUE]


def scene(size=256):
    """(size, size) label map: a disc and a bar that cuts into it, and a small disc."""
    rows, columns = np.mgrid[:size, :size] * 100 / size
    labels = np.zeros((size, size), np.uint8)
    labels[np.hypot(rows - 40, columns - 40) < 25] = 1
    labels[(abs(rows - 60) < 15) & (abs(columns - 65) < 20)] = 2
    labels[np.hypot(rows - 80, columns - 20) < 8] = 3
    return labels


LABELS = scene()
PAINTED = np.array(COLOURS, np.uint8)[LABELS]


def read(path, colours=COLOURS, tolerance=32):
    return read_colour_map(path, 10**6, colours, tolerance)


def test_the_same_mask_in_every_plain_form(tmp_path):
    palette = Image.fromarray(3 - LABELS, "P")
    palette.putpalette([channel for colour in COLOURS[::-1] for channel in colour])
    opaque = Image.fromarray(PAINTED).convert("RGBA")
    clear = np.array(opaque)
    clear[LABELS == 0] = (200, 200, 10, 0)  # what is transparent is not seen
    for name, image in (
        ("rgb.png", Image.fromarray(PAINTED)),
        ("rgb.bmp", Image.fromarray(PAINTED)),
        ("palette.png", palette),
        ("opaque.png", opaque),
        ("clear.png", Image.fromarray(clear)),
    ):
        image.save(tmp_path / name)
        assert np.array_equal(read(tmp_path / name), LABELS), name


def test_what_is_transparent_is_the_background_even_if_that_is_white(tmp_path):
    painted = np.dstack([PAINTED, np.where(LABELS == 0, 0, 255).astype(np.uint8)])
    Image.fromarray(painted).save(tmp_path / "mask.png")
    colours = [(255, 255, 255), RED, GREEN, BLUE]
    assert np.array_equal(read(tmp_path / "mask.png", colours), LABELS)


@pytest.mark.parametrize("quality", [95, 75, 50])
def test_jpeg_masks_are_read_but_for_pixels_of_the_edges(tmp_path, quality):
    Image.fromarray(PAINTED).save(tmp_path / "mask.jpg", quality=quality)
    wrong = read(tmp_path / "mask.jpg") != LABELS
    assert wrong.mean() < 0.001


def test_a_soft_edge_takes_one_of_the_two_colours_that_meet(tmp_path):
    """Half red and half green is olive, which is another target but is not there."""
    soft = Image.fromarray(PAINTED).filter(ImageFilter.GaussianBlur(0.7))
    soft.save(tmp_path / "mask.png")
    bright = [BLACK, RED, GREEN, BLUE, (128, 90, 40)]
    found = read(tmp_path / "mask.png", bright, tolerance=10)
    assert set(np.unique(found)) == {0, 1, 2, 3}
    assert (found != LABELS).mean() < 0.002


def test_other_colours_are_refused_with_their_share_and_an_example(tmp_path):
    Image.fromarray(PAINTED).save(tmp_path / "mask.png")
    share = 100 * (LABELS == 3).mean()
    reason = (
        rf"^{share:.3g} % of its mask has other .* such as \[0, 0, 255\]; name them in --colors"
    )
    with pytest.raises(Unreadable, match=reason):
        read(tmp_path / "mask.png", COLOURS[:3])


def test_an_outline_of_another_colour_is_not_an_edge(tmp_path):
    outlined = PAINTED.copy()
    disc = LABELS == 1
    outlined[disc & ~np.roll(disc, 1, 0)] = outlined[disc & ~np.roll(disc, 1, 1)] = 255
    Image.fromarray(outlined).save(tmp_path / "mask.png")
    with pytest.raises(Unreadable, match=r"such as \[255, 255, 255\]"):
        read(tmp_path / "mask.png")


def test_the_tolerance_is_of_each_channel(tmp_path):
    dark = np.where(PAINTED == 255, np.uint8(255 - 40), np.uint8(40))
    Image.fromarray(dark).save(tmp_path / "mask.png")
    assert np.array_equal(read(tmp_path / "mask.png", tolerance=40), LABELS)
    with pytest.raises(Unreadable, match=r"^100 % .* \[40, 40, 40\]; .* than 39$"):
        read(tmp_path / "mask.png", tolerance=39)


def test_a_mask_of_16_bits_has_no_colours(tmp_path):
    Image.fromarray(LABELS.astype(np.uint16)).save(tmp_path / "mask.png")
    with pytest.raises(Unreadable, match="more than 8 bits; leave --colors out"):
        read(tmp_path / "mask.png")


def test_colours_are_given_as_numbers_or_as_on_the_web():
    named = parse_colours({"b": "#0a0B0c", "background": [255, 255, 255], "a": (1, 2, 3)})
    assert list(named.items()) == [
        ("background", (255, 255, 255)),
        ("b", (10, 11, 12)),
        ("a", (1, 2, 3)),
    ]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"a": [1, 2]}, r"a is \[1, 2\]; expected \[red, green, blue\]"),
        ({"a": [1, 2, 256]}, "a is "),
        ({"a": "ff0000"}, "a is 'ff0000'"),
        ({"a": "#ff00"}, "a is '#ff00'"),
        ({"a": "#gg0000"}, "a is '#gg0000'"),
        ({"a": "#ff0000", "b": [255, 0, 0]}, r"a and b are both \[255, 0, 0\]"),
        ({"a": [0, 0, 0]}, r"background and a are both \[0, 0, 0\]"),
        ({"": [255, 0, 0]}, r"\[255, 0, 0\] has no name"),
        ({" ": [255, 0, 0]}, r"\[255, 0, 0\] has no name"),
        ({"background": [9, 9, 9]}, "0 targets; expected 1 to 255"),
    ],
)
def test_what_is_not_a_colour_is_refused(given, reason):
    with pytest.raises(UserError, match=f"^colors: {reason}"):
        parse_colours(given)


def test_a_coloured_mask_without_colours_is_refused_with_those_it_has(tmp_path):
    Image.fromarray(PAINTED).save(tmp_path / "mask.png")
    shares = [f"{list(COLOURS[n])} in {100 * (n == LABELS).mean():.3g} %" for n in (0, 1, 2, 3)]
    with pytest.raises(Unreadable) as refused:
        read_label_map(tmp_path / "mask.png", 10**6, None, binary=True)
    assert str(refused.value) == (
        f"its mask is coloured ({', '.join(shares)}); give --colors to layout pairs, or convert"
        " it to one label value per pixel"
    )


def test_compressed_colours_are_listed_once():
    generator = np.random.default_rng(0)
    pixels = PAINTED.astype(int) + generator.integers(-7, 8, PAINTED.shape)
    found = common_colours(pixels.clip(0, 255).astype(np.uint8))
    assert len(found) == 4
    for (colour, share), number in zip(found, (0, 1, 2, 3), strict=True):
        assert np.abs(np.array(colour) - COLOURS[number]).max() <= 7
        assert share == pytest.approx((number == LABELS).mean())
