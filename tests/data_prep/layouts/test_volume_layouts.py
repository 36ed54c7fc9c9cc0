"""Layouts of labelled volumes, each as its data set is published, in miniature."""

import json

import nibabel
import numpy as np
import pytest

from data_prep.common.errors import UserError
from data_prep.layouts import find_layout

WHOLE = ("--split", "{train: 1.0}")


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-1.0, -1.0, 2.0, 1.0])), path)


def case(level, values):
    """A volume of about `level` with a ramp, and a label map of boxes with these values."""
    mask = np.zeros((10, 12, 6), np.uint8)
    for number, value in enumerate(values):
        mask[number * 2 : number * 2 + 2, 3:9, 1:5] = value
    return (level + np.arange(720).reshape(mask.shape) % 7).astype(np.float32), mask


def in_reading_order(mask):
    """(D, H, W) of a label map stored in LPS."""
    return mask.transpose(2, 1, 0)


def by_window(records):
    return sorted(records, key=lambda record: record.meta["window"][0])


def test_amos_has_a_validation_split(tmp_path, read_layout):
    for part, name, level in (
        ("Tr", "amos_0001", 100),
        ("Tr", "amos_0004", 200),
        ("Va", "amos_0008", 300),
    ):
        image, mask = case(level, [1, 2])
        save(tmp_path / "amos22" / f"images{part}" / f"{name}.nii.gz", image)
        save(tmp_path / "amos22" / f"labels{part}" / f"{name}.nii.gz", mask)
    save(tmp_path / "amos22" / "imagesTs" / "amos_0002.nii.gz", image)
    labels = {"0": "background", "1": "spleen", "2": "right kidney"}
    document = {"labels": labels, "modality": {"0": "CT"}}
    (tmp_path / "amos22" / "dataset.json").write_text(json.dumps(document))
    splits = read_layout("shard-seg", "nnunet", tmp_path / "amos22")
    assert [round(r.meta["window"][0], -2) for r in by_window(splits["train"])] == [100, 200]
    (record,) = splits["val"]
    assert round(record.meta["window"][0], -2) == 300 and record.meta["modality"] == "CT"
    assert np.array_equal(record.mask, in_reading_order(mask))


def test_acdc_frames_of_a_patient_are_one_group(tmp_path, read_layout):
    for number, (folder, patient) in enumerate(
        (("training", 1), ("training", 2), ("testing", 101))
    ):
        place = tmp_path / "data" / folder / f"patient{patient:03d}"
        for frame in (1, 12):
            image, mask = case(100 * (2 * number + frame // 12), [1, 2, 3])
            save(place / f"patient{patient:03d}_frame{frame:02d}.nii.gz", image)
            save(place / f"patient{patient:03d}_frame{frame:02d}_gt.nii.gz", mask)
        save(place / f"patient{patient:03d}_4d.nii.gz", np.stack([image] * 3, axis=-1))
        text = (
            f"ED: 1\nES: 12\nGroup: {('DCM', 'NOR', 'HCM')[number]}\nHeight: 184.0\nWeight: 95.0\n"
        )
        (place / "Info.cfg").write_text(text)
    splits = read_layout("shard-seg", "acdc", tmp_path / "data")
    train, test = by_window(splits["train"]), splits["test"]
    assert [record.meta["label"] for record in train] == ["DCM", "DCM", "NOR", "NOR"]
    assert len({record.meta["group"] for record in train[:2]}) == 1
    assert len({record.meta["group"] for record in train}) == 2
    assert len(test) == 2 and test[0].meta["label"] == "HCM"
    for record in train + test:
        assert np.array_equal(record.mask, in_reading_order(mask))
        assert record.meta["present"] == ["right ventricle", "myocardium", "left ventricle"]
        assert "184" not in json.dumps(record.meta["label"])


def test_btcv_names_its_thirteen_organs(tmp_path, read_layout):
    image, mask = case(40, [1, 6, 8, 11, 13])
    save(tmp_path / "RawData" / "Training" / "img" / "img0001.nii.gz", image)
    save(tmp_path / "RawData" / "Training" / "label" / "label0001.nii.gz", mask)
    (record,) = read_layout("shard-seg", "btcv", tmp_path / "RawData", *WHOLE)["train"]
    organs = ["spleen", "liver", "aorta", "pancreas", "left adrenal gland"]
    assert record.meta["present"] == organs
    assert np.array_equal(record.mask, in_reading_order(mask))


@pytest.mark.parametrize(
    ("names", "sequences", "values", "groups"),
    [
        (
            ("BraTS20_Training_001", "BraTS20_Training_002"),
            ("_flair", "_t1", "_t1ce", "_t2", "_seg"),
            (1, 2, 4),
            2,
        ),
        (
            ("BraTS-GLI-00005-000", "BraTS-GLI-00005-001"),
            ("-t2f", "-t1n", "-t1c", "-t2w", "-seg"),
            (1, 2, 3),
            1,
        ),
    ],
)
def test_brats_of_two_times(names, sequences, values, groups, tmp_path, read_layout):
    *channels, seg = sequences
    for name in names:
        for number, sequence in enumerate(channels):
            image, mask = case(100 * (number + 1), values)
            save(tmp_path / "data" / name / f"{name}{sequence}.nii.gz", image)
        save(tmp_path / "data" / name / f"{name}{seg}.nii.gz", mask)
    options = ("--channel", "2", *WHOLE)
    records = read_layout("shard-seg", "brats", tmp_path / "data", *options)["train"]
    assert len(records) == 2 and len({record.meta["group"] for record in records}) == groups
    for record in records:
        assert round(record.meta["window"][0], -2) == 300  # the contrast-enhanced T1
        assert np.array_equal(record.mask, in_reading_order(mask))
        assert record.meta["present"] == ["whole tumour", "tumour core", "enhancing tumour"]
        slices = record.meta["slices"]
        assert slices["whole tumour"] == slices["enhancing tumour"] == [1, 2, 3, 4]
    with pytest.raises(UserError, match="channel: 4 is not one of 0 to 3"):
        find_layout("brats", "segmentation")(input=tmp_path / "data", channel=4)


def test_stage_one_takes_the_images_of_all_parts_and_no_mask(tmp_path, read_layout):
    for number, part in enumerate(("Tr", "Va", "Ts")):
        image, mask = case(100 * number, [1, 2])
        save(tmp_path / "data" / f"images{part}" / f"{number}.nii.gz", image)
        save(tmp_path / "data" / f"labels{part}" / f"{number}.nii.gz", mask)
    options = ("--planes", "[axial]", "--min-size", "8")
    records = read_layout("shard", "nifti", tmp_path / "data", *options)["train"]
    windows = {round(record.meta["window"][0], -2) for record in records}
    assert windows == {0, 100, 200} and len(records) == 18
    assert len({record.meta["group"] for record in records}) == 3
