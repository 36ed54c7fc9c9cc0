"""Layouts of stage one with labels, each as its data set is published, in miniature."""

import json

import numpy as np
import pytest

from data_prep.common.errors import UserError
from data_prep.layouts import find_layout
from data_prep.options import ReadOptions
from data_prep.readers.images import read_image


def grey(level, height=40, width=40):
    return np.full((height, width), level, np.uint8)


def summary(records):
    """Brightness and label of each record."""
    return [(int(record.image.mean()), record.meta["label"]) for record in records]


RADIMAGENET = {
    "train": {"CT/abd/normal/abd-normal000001.png": 10, "MR/knee/acl/acl000001.png": 20},
    "val": {"MR/knee/acl/acl000002.png": 30},
    "test": {"US/thyroid/nodule/us1.png": 40},
}


def test_radimagenet_with_its_tables(tmp_path, save_image, read_layout):
    data = tmp_path / "radiology_ai"
    for split, images in RADIMAGENET.items():
        lines = [f"radiology_ai/{name},a label" for name in images]
        data.mkdir(exist_ok=True)
        (data / f"RadiologyAI_{split}.csv").write_text("\n".join(["filename,label", *lines]) + "\n")
        for name, level in images.items():
            save_image(data / name, grey(level))
    save_image(data / "CT/abd/normal/not-listed.png", grey(99))
    splits = read_layout("shard", "radimagenet", data)
    assert summary(splits["train"]) == [(10, "CT abd normal"), (20, "MR knee acl")]
    assert summary(splits["val"]) == [(30, "MR knee acl")]
    assert summary(splits["test"]) == [(40, "US thyroid nodule")]
    assert [record.meta["modality"] for record in splits["train"]] == ["CT", "MR"]


def test_radimagenet_without_tables(tmp_path, save_image, read_layout):
    save_image(tmp_path / "data/radiology_ai/CT/lung/normal/1.png", grey(10))
    (record,) = read_layout("shard", "radimagenet", tmp_path / "data")["train"]
    assert record.meta["label"] == "CT lung normal" and record.meta["modality"] == "CT"


def test_radimagenet_lists_do_not_lead_out_of_the_input(tmp_path):
    (tmp_path / "a_train.csv").write_text("filename,label\n../secret/1.png,x\n")
    layout = find_layout("radimagenet", "pretraining")(input=tmp_path)
    with pytest.raises(UserError, match="is not below the input folder"):
        layout.references()


def fundus(height=300, width=440, radius=140, level=120):
    """A disc on a frame that is black but for some noise."""
    rows, columns = np.mgrid[:height, :width]
    disc = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 <= radius**2
    image = np.where(disc[..., None], (level, level // 2, level // 4), 4).astype(np.uint8)
    image[5, 5] = image[290, 430] = 255  # dust
    return image


def test_eyepacs_both_eyes_are_one_patient(tmp_path, save_image, read_layout):
    for number, name in enumerate(("train/10_left", "train/10_right", "test/2_left")):
        image = fundus(level=100 + 40 * number)
        save_image(tmp_path / "data" / f"{name}.jpeg", image, quality=95)
    (tmp_path / "data" / "trainLabels.csv").write_text("image,level\n10_left,0\n10_right,3\n")
    (tmp_path / "data" / "retinopathy_solution.csv").write_text(
        "image,level,Usage\n2_left,4,Public\n"
    )
    splits = read_layout("shard", "eyepacs", tmp_path / "data", "--max-size", "128")
    left, right = splits["train"]
    assert (left.meta["label"], right.meta["label"]) == ("level 0", "level 3")
    assert left.meta["group"] == right.meta["group"]
    assert splits["test"][0].meta["label"] == "level 4"
    assert splits["test"][0].meta["group"] != left.meta["group"]
    for record in (left, right, *splits["test"]):
        height, width = record.image.shape[:2]
        assert max(height, width) == 128 and abs(height - width) <= 2  # the disc fills the square
        assert (record.image[height // 2].max(axis=-1) > 60).mean() > 0.97


@pytest.mark.parametrize("max_size", [None, 100, 1000])
def test_black_borders_are_cut_off_at_every_size(tmp_path, max_size, save_image):
    save_image(tmp_path / "a.jpg", fundus(), quality=95)
    options = ReadOptions()
    picture = read_image(tmp_path / "a.jpg", options, max_size, crop_border=True)
    side = 100 if max_size == 100 else 281
    assert all(abs(length - side) <= 3 for length in picture.array.shape[:2])
    save_image(tmp_path / "dark.png", grey(3))
    assert read_image(tmp_path / "dark.png", options, crop_border=True).array.shape == (40, 40)


@pytest.mark.parametrize(
    "table", ["HAM10000_metadata", "HAM10000_metadata.csv", "HAM10000_metadata.tab"]
)
def test_isic_tables_of_three_sources(table, tmp_path, save_image, read_layout):
    names = ("ham/HAM10000_images_part_1/ISIC_0000001", "ham/HAM10000_images_part_2/ISIC_0000002")
    names += ("bcn/BCN_20k_train/BCN_0000000001", "bcn/BCN_20k_train/BCN_0000000002")
    names += ("archive/ISIC_0000003", "archive/ISIC_0000004", "archive/ISIC_0000005")
    for number, name in enumerate(names):
        save_image(tmp_path / "data" / f"{name}.jpg", grey(10 * number))
    save_image(tmp_path / "data" / "ham" / "masks" / "ISIC_0000001_segmentation.png", grey(255))
    rows = ["lesion_id,image_id,dx,dx_type,age,sex,localization"]
    rows += [f"HAM_1,ISIC_000000{number},mel,histo,80,male,scalp" for number in (1, 2)]
    text = "\n".join(rows).replace(",", "\t" if table.endswith(".tab") else ",")
    (tmp_path / "data" / "ham" / table).write_text(text)
    (tmp_path / "data" / "bcn" / "bcn_20k_train.csv").write_text(
        "bcn_filename,age_approx,diagnosis,lesion_id,capture_date,sex\n"
        "BCN_0000000001.jpg,55,MEL,BCN_7,2012-05-16,male\n"
        "BCN_0000000002.jpg,60,NV,,2012-05-16,male\n"
    )
    (tmp_path / "data" / "archive" / "metadata.csv").write_text(
        "isic_id,attribution,diagnosis_1,diagnosis_2,diagnosis_3,lesion_id,patient_id\n"
        "ISIC_0000003,A,Benign,Naevi,Nevus,IL_1,IP_1\nISIC_0000004,A,Malignant,,,IL_2,IP_1\n"
    )
    records = read_layout("shard", "isic", tmp_path / "data")["train"]
    diagnoses = ["mel", "mel", "MEL", "NV", "Nevus", "Malignant", None]
    assert [record.meta["label"] for record in records] == diagnoses
    groups = [record.meta["group"] for record in records]
    assert groups[0] == groups[1] and groups[4] == groups[5]
    assert len(set(groups)) == 5
    stored = "".join(json.dumps(record.meta) for record in records)
    assert "2012-05-16" not in stored and "male" not in stored


def test_isic_without_tables_is_refused(tmp_path, save_image):
    save_image(tmp_path / "ISIC_0000001.jpg", grey(1))
    layout = find_layout("isic", "pretraining")(input=tmp_path)
    with pytest.raises(UserError, match="has no table with a column image_id"):
        layout.references()


def test_hf_image_folder(tmp_path, save_image, read_layout):
    for number in range(6):
        name = f"{('train', 'test')[number == 5]}/{('cyst', 'tumour')[number % 2]}/{number}.png"
        save_image(tmp_path / "data" / name, grey(10 * number))
    splits = read_layout("shard", "hf", tmp_path / "data")
    classes = ["cyst", "tumour", "cyst", "tumour", "cyst"]
    assert summary(splits["train"]) == [(10 * n, label) for n, label in enumerate(classes)]
    assert summary(splits["test"]) == [(50, "tumour")]
    assert len({record.meta["group"] for record in splits["train"]}) == 5


def test_hf_parquet_keeps_bytes_and_loses_only_the_broken_image(tmp_path, save_image, read_layout):
    import datasets

    save_image(tmp_path / "a.png", grey(10))
    save_image(tmp_path / "b.jpg", np.dstack([grey(90)] * 3))
    good = [(tmp_path / name).read_bytes() for name in ("a.png", "b.jpg")]
    rows = {
        "picture": [{"bytes": data, "path": None} for data in (*good, good[0][:60])],
        "kind": [1, 0, 1],
        "patient": ["p1", "p1", "p2"],
    }
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "kind": datasets.ClassLabel(names=["left", "right"]),
            "patient": datasets.Value("string"),
        }
    )
    (tmp_path / "data").mkdir()
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(str(tmp_path / "data" / "train.parquet"))
    options = ("--group-column", "patient", "--max-bad", "0.4")
    records = read_layout("shard", "hf", tmp_path / "data", *options)["train"]
    assert summary(records) == [(10, "right"), (90, "left")]
    assert records[0].meta["group"] == records[1].meta["group"]
    tar = next((tmp_path / "hf-shards").glob("*.tar")).read_bytes()
    assert all(data in tar for data in good)
    (line,) = (tmp_path / "hf-shards" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["kind"] == "unreadable"


def test_hf_faults_are_told(tmp_path):
    layout = find_layout("hf", "pretraining")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(UserError, match="no column of images, only x, y"):
        layout(input=str(tmp_path / "data")).references()
    with pytest.raises(UserError, match="cannot be loaded by datasets"):
        layout(input=str(tmp_path / "gone")).references()


def test_a_folder_with_masks_beside_the_images_is_told(tmp_path, save_image, capsys):
    plain = ["scan.png", "a/segment 1.png", "a/landmask-free.png", "target.jpg", "labelled/1.png"]
    plain += ["Dataset_BUSI_with_GT/1.png"]
    masks = ["a_mask.png", "a (2)_mask_1.png", "b_Segmentation.png", "c-gt.tif", "d label.png"]
    masks += ["masks/1.png", "x/labelsTr/2.png", "Part1_GroundTruth/3.png"]
    layout = find_layout("folder", "pretraining")
    for number, name in enumerate(plain):
        save_image(tmp_path / name, grey(number))
    assert len(layout(input=tmp_path).references()) == len(plain)
    assert capsys.readouterr().err == ""
    for name in masks:
        save_image(tmp_path / name, grey(255))
    layout(input=tmp_path).references()
    warning = capsys.readouterr().err
    assert warning.startswith("warning: 8 of 14 files look like masks, such as ")
    assert "shard-seg --layout pairs" in warning and warning.count("\n") == 1
    for name in masks:
        folder = tmp_path / "each" / name.replace("/", "-").split(".")[0]
        save_image(folder / name, grey(255))
        layout(input=folder).references()
        assert f"1 of 1 files look like masks, such as {name}" in capsys.readouterr().err
