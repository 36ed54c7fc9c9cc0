"""Segmentation layouts with image masks, each as its data set is published, in miniature."""

import json

import numpy as np
import pytest

from data_prep.common.errors import UserError
from data_prep.layouts import find_layout
from data_prep.readers.masks import nearest_level, read_union
from data_prep.records import Unreadable

WHOLE = ("--split", "{train: 1.0}")


def grey(level):
    return np.full((40, 50), level, np.uint8)


def box(top, left, height=10, width=12, value=255):
    mask = np.zeros((40, 50), np.uint8)
    mask[top : top + height, left : left + width] = value
    return mask


def test_busi_unites_the_masks_of_an_image(tmp_path, save_image, read_layout, left_out):
    data = tmp_path / "BUSI"
    save_image(data / "benign" / "benign (1).png", grey(10))
    save_image(data / "benign" / "benign (1)_mask.png", box(0, 0))
    save_image(data / "benign" / "benign (1)_mask_1.png", box(5, 30) > 0)
    save_image(data / "malignant" / "malignant (1).png", np.dstack([grey(20)] * 3))
    save_image(data / "malignant" / "malignant (1)_mask.png", np.dstack([box(9, 9)] * 3))
    save_image(data / "normal" / "normal (1).png", grey(30))
    save_image(data / "normal" / "normal (1)_mask.png", grey(0))
    save_image(data / "normal" / "normal (2).png", grey(40))
    records = read_layout("shard-seg", "busi", data, *WHOLE)["train"]
    expected = [box(0, 0) | box(5, 30), box(9, 9), grey(0)]
    assert [record.meta["label"] for record in records] == ["benign", "malignant", "normal"]
    assert [record.meta["present"] for record in records] == [["lesion"], ["lesion"], []]
    for record, mask in zip(records, expected, strict=True):
        assert np.array_equal(record.mask, mask // 255)
    assert left_out(tmp_path / "busi-shards") == {
        "normal/normal (2).png": ("skipped", "has no mask")
    }


@pytest.mark.parametrize(
    ("images", "masks", "suffix"),
    [
        (
            "ISBI2016_ISIC_Part1_Training_Data",
            "ISBI2016_ISIC_Part1_Training_GroundTruth",
            "_Segmentation",
        ),
        ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth", "_segmentation"),
        ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth", "_segmentation"),
    ],
)
def test_isic_task1_of_three_years(images, masks, suffix, tmp_path, save_image, read_layout):
    for number, split in enumerate(("Training", "Validation", "Test")):
        name = f"ISIC_000000{number}"
        save_image(tmp_path / images.replace("Training", split) / f"{name}.jpg", grey(number * 50))
        superpixels = tmp_path / images.replace("Training", split) / f"{name}_superpixels.png"
        save_image(superpixels, np.arange(2000, dtype=np.uint8).reshape(40, 50))
        mask = tmp_path / masks.replace("Training", split) / f"{name}{suffix}.png"
        save_image(mask, box(number, number))
    splits = read_layout("shard-seg", "isic_task1", tmp_path)
    for number, split in enumerate(("train", "val", "test")):
        (record,) = splits[split]
        assert record.image.max() == number * 50
        assert np.array_equal(record.mask, box(number, number) // 255)


def test_isic_task1_splits_by_whole_words(tmp_path, save_image, read_layout):
    save_image(tmp_path / "latest" / "ISIC_0000000.jpg", grey(50))
    save_image(tmp_path / "latest" / "ISIC_0000000_segmentation.png", box(1, 1))
    splits = read_layout("shard-seg", "isic_task1", tmp_path, *WHOLE)
    assert list(splits) == ["train"]


def rim_and_cup(cup):
    """0 in the cup, 128 in the rest of the disc, 255 elsewhere."""
    mask = grey(255)
    mask[box(10, 10, 20, 20) > 0] = 128
    mask[box(14, 14, cup, cup) > 0] = 0
    return mask


def test_refuge_disc_holds_the_cup(tmp_path, save_image, read_layout):
    train = tmp_path / "Annotation-Training400" / "Disc_Cup_Masks"
    save_image(tmp_path / "Training400" / "Glaucoma" / "g0001.jpg", grey(50))
    save_image(train / "Glaucoma" / "g0001.bmp", rim_and_cup(9))
    save_image(tmp_path / "Training400" / "Non-Glaucoma" / "n0001.jpg", grey(60))
    save_image(train / "Non-Glaucoma" / "n0001.bmp", rim_and_cup(4))
    save_image(tmp_path / "REFUGE-Validation400" / "V0001.jpg", grey(70))
    save_image(
        tmp_path / "REFUGE-Validation400-GT" / "Disc_Cup_Masks" / "V0001.bmp", rim_and_cup(5)
    )
    save_image(tmp_path / "Test400" / "T0001.jpg", grey(80))
    save_image(tmp_path / "REFUGE-Test-GT" / "Disc_Cup_Masks" / "G" / "T0001.bmp", rim_and_cup(6))
    splits = read_layout("shard-seg", "refuge", tmp_path)
    records = [*splits["train"], *splits["val"], *splits["test"]]
    assert [record.meta["label"] for record in records] == ["glaucoma", "normal", None, "glaucoma"]
    for record, cup in zip(records, (9, 4, 5, 6), strict=True):
        assert np.array_equal(record.mask > 0, box(10, 10, 20, 20) > 0)
        assert np.array_equal(record.mask == 2, box(14, 14, cup, cup) > 0)
        assert record.meta["present"] == ["optic disc", "optic cup"]


def test_soft_edges_go_to_the_nearest_level_and_other_values_are_refused():
    values = np.tile(np.array([250, 255, 131, 128, 120, 3, 0, 0], np.uint8), (25, 5))
    assert np.array_equal(nearest_level(values, (255, 128, 0))[0, :8], [0, 0, 1, 1, 1, 2, 2, 2])
    values[0, :10] = 60  # 1 % of the pixels, between cup and rim
    assert nearest_level(values, (255, 128, 0))[0, 0] == 2
    values[1, :2] = 60
    with pytest.raises(Unreadable, match="other grey values than 255, 128, 0"):
        nearest_level(values, (255, 128, 0))


def svg(*polygons):
    shapes = [{"points": [{"x": x, "y": y} for x, y in polygon]} for polygon in polygons]
    return json.dumps([shape | {"regionType": "freehand"} for shape in shapes])


DDTI = """<?xml version="1.0"?><case><number>{}</number><age>44</age><sex>F</sex>
<tirads>{}</tirads>{}</case>"""


def test_ddti_draws_every_nodule(tmp_path, save_image, read_layout, left_out):
    square = [(5, 6), (5, 15), (14, 15), (14, 6)]
    triangle = [(30, 10), (40, 10), (30, 30)]
    marks = [
        f"<mark><image>1</image><svg>{svg(square, triangle)}</svg></mark>",
        f"<mark><image>2</image><svg>{svg(square)}</svg></mark>"
        f"<mark><image>2</image><svg>{svg(triangle)}</svg></mark>",
        "<mark><image>3</image><svg></svg></mark>",
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "7.xml").write_text(DDTI.format(7, "4a", "".join(marks)))
    (tmp_path / "data" / "8.xml").write_text(DDTI.format(8, "", "<mark><svg>[}</svg></mark>"))
    (tmp_path / "data" / "9.xml").write_text(
        DDTI.format(9, "", f"<mark><image>1</image><svg>{svg(square)[:-9]}</svg></mark>")
    )
    for number, name in enumerate(("7_1", "7_2", "7_3", "8_1", "9_1", "10_1")):
        save_image(tmp_path / "data" / f"{name}.jpg", grey(20 * number))
    options = ("--max-bad", "0.2", *WHOLE)
    records = read_layout("shard-seg", "ddti", tmp_path / "data", *options)["train"]
    assert len(records) == 2
    assert len({record.meta["group"] for record in records}) == 1
    rows, columns = np.mgrid[:40, :50]
    for record in records:
        assert np.array_equal(record.mask[:, :28] > 0, box(6, 5, 10, 10)[:, :28] > 0)
        # the triangle's hypotenuse runs from (40, 10) to (30, 30)
        distance = ((40 - columns) * 2 - (rows - 10)) / np.sqrt(5)
        inside = (columns >= 30) & (rows >= 10) & (distance >= 0)
        assert ((record.mask > 0) != inside)[:, 28:][abs(distance[:, 28:]) > 1].sum() == 0
        assert record.meta["label"] == "TI-RADS 4a"
        assert "44" not in json.dumps(record.meta["label"]) and "sex" not in record.meta
    assert left_out(tmp_path / "ddti-shards") == {
        "7_3.jpg": ("skipped", "has no outline"),
        "8_1.jpg": ("skipped", "has no outline"),
        "9_1.jpg": ("unreadable", "its outlines cannot be read (JSONDecodeError)"),
        "10_1.jpg": ("skipped", "its case has no XML file"),
    }


def test_tnscui_takes_classes_from_its_table(tmp_path, save_image, read_layout):
    for number in range(3):
        save_image(tmp_path / "train" / "image" / f"{number:04d}.PNG", grey(number))
        save_image(tmp_path / "train" / "mask" / f"{number:04d}.png", box(number, 0))
    (tmp_path / "train.csv").write_text("ID,CATE\n0000.PNG,1\n0001.PNG,0\n")
    records = read_layout("shard-seg", "tnscui", tmp_path, *WHOLE)["train"]
    assert [record.meta["label"] for record in records] == ["CATE 1", "CATE 0", None]
    for number, record in enumerate(records):
        assert np.array_equal(record.mask, box(number, 0) // 255)
    (tmp_path / "train.csv").write_text("name,CATE\n0000.PNG,1\n")
    with pytest.raises(UserError, match=r"train\.csv: has no column 'ID', only name, CATE"):
        find_layout("tnscui", "segmentation")(input=tmp_path).references()


def make_lists(root, save_image):
    """Two images to train on, one of them with masks that overlap, and one to test on."""
    masks = {
        "a_1": {"left_lung_000": box(0, 0), "left_lung_001": box(20, 0), "heart_000": box(5, 20)},
        "b_2": {"heart_000": box(5, 20), "left_lung_000": box(8, 24), "liver_000": box(30, 0)},
        "c_3": {"liver_000": box(12, 3)},
    }
    for number, (image, named) in enumerate(masks.items()):
        save_image(root / "images" / f"{image}.png", grey(40 * number))
        for name, mask in named.items():
            save_image(root / "masks" / f"{image}_{name}.png", mask)
    listed = {
        f"data_demo/images/{image}.png": [f"data_demo/masks/{image}_{name}.png" for name in named]
        for image, named in masks.items()
    }
    test = "data_demo/images/c_3.png"
    (root / "label2image_test.json").write_text(
        json.dumps({mask: test for mask in listed.pop(test)})
    )
    (root / "image2label_train.json").write_text(json.dumps(listed))


def test_image2label_overlapping_masks_lose_no_pixel(tmp_path, save_image, read_layout):
    make_lists(tmp_path / "data", save_image)
    splits = read_layout("shard-seg", "image2label", tmp_path / "data")
    heart, lung, liver = 1, 2, 3  # in the order of their names
    first, *second = splits["train"]
    assert np.array_equal(first.mask == lung, box(0, 0) + box(20, 0) > 0)
    assert np.array_equal(first.mask == heart, box(5, 20) > 0)
    assert first.meta["present"] == ["heart", "left lung"]
    assert len(second) == 2 and np.array_equal(second[0].image, second[1].image)
    assert second[0].meta["group"] == second[1].meta["group"]
    second.sort(key=lambda record: record.meta["present"])
    assert [record.meta["present"] for record in second] == [["heart", "liver"], ["left lung"]]
    for record, value, mask in (
        (second[0], heart, box(5, 20)),
        (second[0], liver, box(30, 0)),
        (second[1], lung, box(8, 24)),
    ):
        assert np.array_equal(record.mask == value, mask > 0)
    (test,) = splits["test"]
    assert np.array_equal(test.mask == liver, box(12, 3) > 0)


def test_image2label_faults_are_told(tmp_path, save_image):
    layout = find_layout("image2label", "segmentation")
    with pytest.raises(UserError, match="has neither image2label_train"):
        layout(input=tmp_path).references()
    train = tmp_path / "image2label_train.json"
    faults = {
        '{"a.png": ["b.png"]}': "a.png, which the list names, is not below",
        '{"../a.png": ["b.png"]}': "is not below the input folder",
        '{"/etc/a.png": ["b.png"]}': "is not below the input folder",
        '{"a.png": "b.png"}': "not a map from images to lists",
        "[1]": "not a map from files",
        "{": "is not JSON",
    }
    for text, message in faults.items():
        train.write_text(text)
        with pytest.raises(UserError, match=message):
            layout(input=tmp_path).references()


def test_masks_of_several_sizes_are_refused(tmp_path, save_image):
    save_image(tmp_path / "a.png", box(0, 0))
    save_image(tmp_path / "b.png", box(0, 0)[:-1])
    with pytest.raises(Unreadable, match="its masks differ in size"):
        read_union([tmp_path / "a.png", tmp_path / "b.png"], 10**6, None)
