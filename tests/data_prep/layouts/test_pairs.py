"""Layout pairs with a mask file for each target, and with masks in colours."""

import json

import numpy as np
import pytest
from PIL import Image

from data_prep.common.errors import UserError
from data_prep.layouts.pairs import Pairs


def disc(radius, centre=20):
    rows, columns = np.mgrid[:40, :40]
    return (((rows - 20) ** 2 + (columns - centre) ** 2 < radius**2) * 255).astype(np.uint8)


@pytest.fixture
def eyes(tmp_path, save_image):
    """Three photographs; disc and cup overlap, and the last one has no cup."""
    for case in range(3):
        save_image(tmp_path / f"photo/{case}.jpg", np.full((40, 40, 3), 50 * case + 20, np.uint8))
        save_image(tmp_path / f"disc/{case}.png", disc(12))
        if case < 2:
            save_image(tmp_path / f"cup/{case}.png", disc(5 + case, centre=26))
    return tmp_path


MASKS = ("--mask", "{disc: disc/*.png, cup: cup/*.png}", "--image", "photo/*.jpg")


def test_overlapping_masks_of_several_targets(eyes, read_layout):
    options = (*MASKS, "--missing", "empty", "--split", "{train: 1.0}")
    splits = read_layout("shard-seg", "pairs", eyes, *options)
    records = splits["train"]
    assert len(records) == 3
    labels = {"disc": [1, 3], "cup": [2, 3]}
    for case, record in enumerate(records):
        cup = disc(5 + case, centre=26) if case < 2 else np.zeros((40, 40))
        for name, expected in (("disc", disc(12)), ("cup", cup)):
            assert np.array_equal(np.isin(record.mask, labels[name]), expected > 0), (case, name)
    assert [record.meta["present"] for record in records] == [["disc", "cup"]] * 2 + [["disc"]]


def test_an_image_without_one_of_its_masks_is_refused(eyes):
    layout = Pairs(input=eyes, image="photo/*.jpg", mask={"disc": "disc/*.png", "cup": "cup/*.png"})
    assert layout.targets() == {"disc": [1, 3], "cup": [2, 3]}
    with pytest.raises(
        UserError, match=r"photo/2\.jpg has no mask cup/2\.png \(1 of 3 .*--missing"
    ):
        layout.references()


def test_options_that_exclude_each_other(tmp_path):
    masks = {f"t{index}": f"{index}/*.png" for index in range(9)}
    with pytest.raises(UserError, match="mask: 9 patterns; expected 1 to 8"):
        Pairs(input=tmp_path, image="*.jpg", mask=masks)
    with pytest.raises(UserError, match="labels: are for mask files of several values"):
        Pairs(input=tmp_path, image="*.jpg", mask={"a": "a/*.png"}, labels={"a": [1]})


COLOURS = {"background": [255, 255, 255], "disc": [200, 0, 0], "cup": [0, 0, 200]}


@pytest.fixture
def painted(tmp_path, save_image):
    """Three photographs with masks in colours on white, one of them a palette image."""
    for case in range(3):
        labels = np.where(disc(5 + case, centre=26) > 0, 2, disc(12) // 255).astype(np.uint8)
        mask = Image.fromarray(np.array(list(COLOURS.values()), np.uint8)[labels])
        save_image(tmp_path / f"photo/{case}.jpg", np.full((40, 40, 3), 50 * case + 20, np.uint8))
        save_image(tmp_path / f"labels/{case}.png", labels)
        (tmp_path / "mask").mkdir(exist_ok=True)
        (mask.quantize() if case == 1 else mask).save(tmp_path / f"mask/{case}.png")
    return tmp_path


PAINTED = ("--image", "photo/*.jpg", "--mask", "mask/*.png", "--split", "{train: 1.0}")
COLOURED = "{disc: [200, 0, 0], background: '#ffffff', cup: '#0000c8'}"


def test_masks_in_colours(painted, read_layout):
    records = read_layout("shard-seg", "pairs", painted, *PAINTED, "--colors", COLOURED)["train"]
    assert len(records) == 3
    for case, record in enumerate(records):
        labels = np.asarray(Image.open(painted / f"labels/{case}.png"))
        assert np.array_equal(record.mask, labels)
        assert record.meta["present"] == ["disc", "cup"]


def test_a_mask_with_another_colour_costs_its_own_record_only(painted, read_layout, save_image):
    wrong = np.full((40, 40, 3), 255, np.uint8)
    wrong[:20] = (0, 160, 0)
    save_image(painted / "mask/1.png", wrong)
    options = (*PAINTED, "--colors", COLOURED, "--max_bad", "0.5")
    assert len(read_layout("shard-seg", "pairs", painted, *options)["train"]) == 2
    (index,) = (painted / "pairs-shards").glob("*.index.json")
    assert "50 % of its mask has other colours" in index.read_text()


def test_a_set_made_before_colours_is_continued_and_other_colours_are_not_mixed_in(
    painted, read_layout, folder_bytes
):
    def read(*options):
        return read_layout("shard-seg", "pairs", painted, *PAINTED, *options)

    output = painted / "pairs-shards"
    for path in (painted / "mask").glob("*.png"):
        Image.fromarray(disc(12)).save(path)
    read()
    (index,) = output.glob("*.index.json")
    document = json.loads(index.read_text())
    for name in ("colors", "color_tolerance"):
        del document["options"][name]
    index.write_text(json.dumps(document))
    before = folder_bytes(output)
    read()
    after = folder_bytes(output)
    assert after[index.name] == before[index.name]
    with pytest.raises(SystemExit):
        read("--colors", "{disc: [255, 255, 255]}")


def test_colours_exclude_what_is_for_grey_masks(tmp_path):
    grey = "is for grey masks, colors for coloured ones; give one"
    for options, reason in (
        ({"labels": {"disc": [1]}}, f"labels: {grey}"),
        ({"threshold": 128}, f"threshold: {grey}"),
        ({"mask": {"disc": "disc/*.png"}}, "colors: are for masks of one pattern"),
        ({"color_tolerance": 128}, "color_tolerance: 128 is not between 0 and 127"),
        ({"colors": {"disc": [300, 0, 0]}}, r"colors: disc is \[300, 0, 0\]"),
    ):
        given = {"image": "*.jpg", "mask": "*.png", "colors": COLOURS} | options
        with pytest.raises(UserError, match=reason):
            Pairs(input=tmp_path, **given)


def test_what_cannot_be_a_colour_is_refused_in_words(painted, read_layout, capsys):
    with pytest.raises(SystemExit):
        read_layout("shard-seg", "pairs", painted, *PAINTED, "--colors", "{disc: [0.5, 0, 0]}")
    assert "is not a mapping from names to lists of whole numbers or" in capsys.readouterr().err


@pytest.mark.parametrize(("missing", "records"), [("empty", 3), ("skip", 2)])
def test_images_without_a_mask_are_empty_or_left_out(
    missing, records, tmp_path, save_image, read_layout, capsys
):
    for number in range(3):
        save_image(
            tmp_path / "in" / "images" / f"{number}.png", np.full((40, 40), number, np.uint8)
        )
        if number != 1:
            save_image(tmp_path / "in" / "masks" / f"{number}.png", np.eye(40, dtype=np.uint8))
    options = ("--image=images/*.png", "--mask=masks/*.png", "--split={train: 1.0}")
    with pytest.raises(SystemExit):
        read_layout("shard-seg", "pairs", tmp_path / "in", *options)
    error = capsys.readouterr().err
    assert "--missing empty" in error and "--missing skip" in error
    found = read_layout("shard-seg", "pairs", tmp_path / "in", *options, f"--missing={missing}")
    assert len(found["train"]) == records
    assert [bool(record.mask.any()) for record in found["train"]] == [True, False, True][
        :: 4 - records
    ]
