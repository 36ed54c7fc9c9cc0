"""Discs and cups from the lines that raters have drawn."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data_prep.layouts.riga import disc_and_cup
from data_prep.records import Unreadable

HEIGHT, WIDTH = 160, 200


def photograph():
    """A smooth picture with a little noise."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    base = np.dstack([120 + x / 4, 60 + y / 4, 40 + (x + y) / 9])
    return (base + np.random.default_rng(0).normal(0, 3, base.shape)).clip(0, 255).astype(np.uint8)


def draw(image, *circles, width=3):
    """Closed lines on a copy of the picture, each (x, y, radius of its middle)."""
    canvas = Image.fromarray(image)
    for x, y, radius in circles:
        outer = radius + width / 2
        bounds = (x - outer, y - outer, x + outer, y + outer)
        ImageDraw.Draw(canvas).ellipse(bounds, outline=(0, 0, 255), width=width)
    return np.array(canvas)


def circle(x, y, radius):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize(
    "cup",
    [(100, 80, 20), (118, 80, 20), (122, 84, 24)],
    ids=["in the middle", "beside the disc's line", "touching the disc's line"],
)
def test_lines_enclose_disc_and_cup(cup):
    disc = (100, 80, 48)
    mask = disc_and_cup(photograph(), draw(photograph(), disc, cup))
    assert overlap(mask > 0, circle(*disc)) > 0.96
    assert overlap(mask == 2, circle(*cup)) > 0.92


def test_compression_and_small_gaps_do_no_harm(tmp_path):
    drawing = draw(photograph(), (100, 80, 48), (95, 80, 22))
    drawing[79:82, 145:152] = photograph()[79:82, 145:152]  # three rows of the line are missing
    Image.fromarray(photograph()).save(tmp_path / "a.jpg", quality=90)
    Image.fromarray(drawing).save(tmp_path / "b.jpg", quality=90)
    images = [np.array(Image.open(tmp_path / name)) for name in ("a.jpg", "b.jpg")]
    mask = disc_and_cup(*images)
    assert overlap(mask > 0, circle(100, 80, 48)) > 0.95
    assert overlap(mask == 2, circle(95, 80, 22)) > 0.93


def test_uncertain_drawings_are_refused():
    image = photograph()
    with pytest.raises(Unreadable, match="shows no line"):
        disc_and_cup(image, image)
    with pytest.raises(Unreadable, match="encloses 1 regions"):
        disc_and_cup(image, draw(image, (100, 80, 48)))
    with pytest.raises(Unreadable, match="encloses 3 regions"):
        disc_and_cup(image, draw(image, (100, 80, 48), (85, 80, 12), (120, 80, 12)))
    with pytest.raises(Unreadable, match=r"a drawing of \(159, 200, 3\)"):
        disc_and_cup(image, image[:-1])


def test_raters_are_united_or_kept_apart(tmp_path, save_image, read_layout):
    folder = tmp_path / "data" / "RIGA" / "MESSIDOR"
    radii = (40, 40, 50, 50, 50, 30)
    for number in (1, 2):
        save_image(folder / f"image{number}prime.tif", photograph())
    for rater, radius in enumerate(radii, start=1):
        drawing = draw(photograph(), (100, 80, radius), (100, 80, 20))
        save_image(folder / f"image1-{rater}.tif", drawing)
        save_image(folder / f"image2-{rater}.tif", drawing)
    options = ("--split", "{train: 0.5, test: 0.5}")
    splits = read_layout("shard-seg", "riga", tmp_path / "data", *options)
    for split in ("train", "test"):
        (record,) = splits[split]
        assert record.meta["raters"] == 6
        # five of six raters mark what lies within 40 pixels, only three what lies within 50
        assert overlap(record.mask > 0, circle(100, 80, 40)) > 0.96
        assert overlap(record.mask == 2, circle(100, 80, 20)) > 0.93

    for path in (tmp_path / "riga-shards").glob("*.*"):
        path.unlink()
    splits = read_layout("shard-seg", "riga", tmp_path / "data", *options, "--raters", "each")
    for split in ("train", "test"):
        records = sorted(splits[split], key=lambda record: record.meta["rater"])
        assert [record.meta["rater"] for record in records] == [1, 2, 3, 4, 5, 6]
        assert len({record.meta["group"] for record in records}) == 1
        for record, radius in zip(records, radii, strict=True):
            assert overlap(record.mask > 0, circle(100, 80, radius)) > 0.95


def test_one_unclear_drawing_does_not_lose_an_image(tmp_path, save_image, read_layout, left_out):
    clear = draw(photograph(), (100, 80, 48), (100, 80, 20))
    unclear = draw(photograph(), (100, 80, 48))
    for image, drawings in ((1, [clear, clear, unclear]), (2, [clear, unclear])):
        save_image(tmp_path / "data" / f"image{image}prime.tif", photograph())
        for rater, drawing in enumerate(drawings, start=1):
            save_image(tmp_path / "data" / f"image{image}-{rater}.tif", drawing)
    options = ("--split", "{train: 1.0}", "--max-bad", "0.5")
    (record,) = read_layout("shard-seg", "riga", tmp_path / "data", *options)["train"]
    assert record.meta["raters"] == 2
    assert overlap(record.mask > 0, circle(100, 80, 48)) > 0.96
    ((file, (_, reason)),) = left_out(tmp_path / "riga-shards").items()
    assert file.endswith("image2prime.tif") and "encloses 1 regions" in reason
