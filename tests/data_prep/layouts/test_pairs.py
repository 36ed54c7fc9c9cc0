"""Layout pairs with a mask file for each target."""

import numpy as np
import pytest

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
