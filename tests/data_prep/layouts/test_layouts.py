"""Layouts with masks: nnunet, pairs and the sample data."""

import csv
import json

import nibabel
import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.common.errors import UserError
from data_prep.layouts import find_layout, samples
from data_prep.loader.dataset import ShardDataset
from data_prep.readers.nifti import mask_to_nifti


def shard_seg(layout, folder, output, *options):
    main(
        ["shard-seg", "--layout", layout, "--input", str(folder), "--output", str(output), *options]
    )


def make_cases(folder, count=5, suffix="", labels=None, channels=1):
    """An nnU-Net folder of small volumes in LPS orientation."""
    generator = np.random.default_rng(0)
    affine = np.diag([-1.0, -2.0, 3.0, 1.0])
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case in range(count):
        mask = generator.integers(0, 3, (8, 9, 7)).astype(np.uint8)
        mask[:, :, :2] = 0
        image = (mask * 100 + generator.normal(0, 5, mask.shape)).astype(np.float32)
        if channels > 1:
            image = np.stack([image * (k + 1) for k in range(channels)], axis=-1)
        path = folder / "imagesTr" / f"case{case}{suffix}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(image, affine), path)
        path = folder / "labelsTr" / f"case{case}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(mask, affine), path)
    document = {"labels": labels or {"0": "background", "1": "cortex", "2": "core"}}
    (folder / "dataset.json").write_text(json.dumps(document))


def test_nnunet_volumes_stay_whole_and_go_back(tmp_path):
    make_cases(tmp_path / "data")
    shard_seg("nnunet", tmp_path / "data", tmp_path / "set")
    train, test = ShardDataset(tmp_path / "set"), ShardDataset(tmp_path / "set", "test")
    assert (len(train), len(test)) == (4, 1)
    assert train.info["labels"] == {"cortex": [1], "core": [2]}
    originals = {
        nibabel.load(path).get_fdata().tobytes(): path
        for path in (tmp_path / "data" / "labelsTr").iterdir()
    }
    for record in [*map(train.record, range(4)), test.record(0)]:
        assert record.image.shape == record.mask.shape == (7, 9, 8)
        assert record.image.dtype == record.mask.dtype == np.uint8
        assert record.meta["spacing"] == [3, 2, 1]
        assert record.meta["slices"] == {"cortex": [2, 3, 4, 5, 6], "core": [2, 3, 4, 5, 6]}
        reference = tmp_path / "data" / "imagesTr" / "case0.nii.gz"
        back = mask_to_nifti(record.mask, reference).get_fdata()
        originals.pop(back.tobytes())  # each label map came back voxel for voxel, once
        assert record.image[record.mask == 2].mean() > record.image[record.mask == 1].mean() + 50
    assert not originals


def test_some_slices_of_a_volume_are_read_alone(tmp_path, monkeypatch):
    make_cases(tmp_path / "data")
    shard_seg("nnunet", tmp_path / "data", tmp_path / "set")
    dataset = ShardDataset(tmp_path / "set")
    whole = dataset.record(2)
    monkeypatch.setattr("data_prep.loader.dataset.decode", None)  # a whole member is never decoded
    for wanted in (slice(3, 4), slice(0, 3), slice(5, None), slice(4, 4), slice(-2, None)):
        part = dataset.record(2, wanted)
        assert np.array_equal(part.image, whole.image[wanted])
        assert np.array_equal(part.mask, whole.mask[wanted])
        assert part.meta == whole.meta


def test_nnunet_regions_and_channels(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    make_cases(tmp_path / "files", suffix="_0001", labels=labels)
    shard_seg("nnunet", tmp_path / "files", tmp_path / "set", "--channel", "1")
    dataset = ShardDataset(tmp_path / "set")
    assert dataset.info["labels"] == {"whole": [1, 2], "core": [2]}
    assert dataset.meta(0)["present"] == ["whole", "core"]
    make_cases(tmp_path / "stacked", channels=3)
    full = ("--window", "full")
    shard_seg("nnunet", tmp_path / "stacked", tmp_path / "third", "--channel", "2", *full)
    shard_seg("nnunet", tmp_path / "stacked", tmp_path / "first", *full)
    third, first = (
        ShardDataset(tmp_path / "third").meta(0),
        ShardDataset(tmp_path / "first").meta(0),
    )
    assert third["window"] == pytest.approx([3 * x for x in first["window"]], rel=1e-5)


def patients(folder, dataset):
    """Names of the patients in a split, as the private folder of its set says."""
    names = {}
    for path in (folder / "private").glob("*-*.csv"):
        with path.open(newline="") as file:
            names |= {row["group"]: row["patient"] for row in csv.DictReader(file)}
    return {names[dataset.meta(index)["group"]] for index in range(len(dataset))}


@pytest.mark.parametrize("suffix", ["", "_0000"])
def test_stage_one_leaves_out_the_held_out_cases(suffix, tmp_path, capsys):
    """Each set has a salt of its own; that of the other one is taken from its private folder."""
    make_cases(tmp_path / "data", suffix=suffix)
    shard_seg("nnunet", tmp_path / "data", tmp_path / "seg")
    arguments = ["shard", "--layout", "nifti", "--input", str(tmp_path / "data")]
    arguments += ["--min-size", "4", "--held-out", str(tmp_path / "seg"), "--output"]
    main([*arguments, str(tmp_path / "set")])
    stage_one = ShardDataset(tmp_path / "set")
    train, test = ShardDataset(tmp_path / "seg"), ShardDataset(tmp_path / "seg", "test")
    assert "held_out: 1 of 1 patients" in capsys.readouterr().out
    with pytest.raises(SystemExit):  # forgotten, they would come in
        main(
            [word for word in arguments if "held" not in word and word != str(tmp_path / "seg")]
            + [str(tmp_path / "set")]
        )
    assert "was made with --held_out given, not null" in capsys.readouterr().err
    shown = patients(tmp_path / "set", stage_one)
    assert shown == patients(tmp_path / "seg", train)
    assert patients(tmp_path / "seg", test).isdisjoint(shown)
    (tmp_path / "seg" / "private").rename(tmp_path / "elsewhere")
    with pytest.raises(SystemExit):
        main([*arguments, str(tmp_path / "other")])
    assert "give --salt, the one that it was made with" in capsys.readouterr().err
    salt = (tmp_path / "elsewhere" / "salt").read_text()
    main([*arguments, str(tmp_path / "other"), "--salt", salt])
    assert patients(tmp_path / "other", ShardDataset(tmp_path / "other")) == shown


def test_nnunet_faults_are_told(tmp_path):
    make_cases(tmp_path / "data")
    layout = find_layout("nnunet", "segmentation")
    (tmp_path / "data" / "imagesTr" / "case3.nii.gz").rename(tmp_path / "moved.nii.gz")
    with pytest.raises(UserError, match=r"case3\.nii\.gz: has no image"):
        layout(input=tmp_path / "data").references()
    document = tmp_path / "data" / "dataset.json"
    document.write_text('{"labels": [1, 2]}')
    with pytest.raises(UserError, match="not in MSD or nnU-Net form"):
        layout(input=tmp_path / "data").references()
    document.unlink()
    with pytest.raises(UserError, match=r"dataset\.json: missing"):
        layout(input=tmp_path / "data").references()


def test_masks_that_do_not_fit_are_left_out(tmp_path, left_out, capsys):
    make_cases(tmp_path / "data", count=6)
    labels = tmp_path / "data" / "labelsTr"
    ours = nibabel.load(labels / "case0.nii.gz")
    data = ours.get_fdata().astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(data[:-1], ours.affine), labels / "case1.nii.gz")
    moved = ours.affine.copy()
    moved[0, 3] += 5
    nibabel.save(nibabel.Nifti1Image(data, moved), labels / "case2.nii.gz")
    nibabel.save(nibabel.Nifti1Image(data + 5, ours.affine), labels / "case3.nii.gz")
    shard_seg("nnunet", tmp_path / "data", tmp_path / "set", "--max-bad", "0.6")
    reasons = {file[-12:]: reason for file, (_, reason) in left_out(tmp_path / "set").items()}
    assert "label map of (7, 9, 7)" in reasons["case1.nii.gz"]
    assert "elsewhere in space" in reasons["case2.nii.gz"]
    assert "value 5, which no label has" in reasons["case3.nii.gz"]
    assert len(reasons) == 3


def make_pairs(folder, masks):
    folder.mkdir()
    for number, mask in enumerate(masks):
        image = np.full((*mask.shape[:2], 3), 40 + number, np.uint8)
        Image.fromarray(image).save(folder / f"p{number // 2}_eye{number}.jpg")
        Image.fromarray(mask).save(folder / f"p{number // 2}_eye{number} mask.png")


PATTERNS = ("--image", "*.jpg", "--mask", "* mask.png")


def test_pairs_of_binary_masks(tmp_path):
    mask = np.zeros((40, 50), np.uint8)
    mask[5:9, 7:20] = 255
    make_pairs(tmp_path / "data", [mask, mask > 0, np.zeros_like(mask), np.dstack([mask] * 3)])
    group = ("--group", r"(p\d)", "--split", "{train: 0.5, val: 0.5}")
    shard_seg("pairs", tmp_path / "data", tmp_path / "set", *PATTERNS, *group)
    records = []
    for split in ("train", "val"):
        dataset = ShardDataset(tmp_path / "set", split)
        assert len(dataset) == 2
        assert len({dataset.meta(i)["group"] for i in range(2)}) == 1
        records += [dataset.record(i) for i in range(2)]
    assert dataset.info["labels"] == {"target": [1]}
    records.sort(key=lambda record: record.image.mean())
    for number, record in enumerate(records):
        expected = np.zeros_like(mask) if number == 2 else mask // 255
        assert np.array_equal(record.mask, expected)
        assert record.meta["present"] == ([] if number == 2 else ["target"])


def test_pairs_of_label_maps(tmp_path):
    mask = np.random.default_rng(0).choice(np.array([0, 128, 255], np.uint8), (40, 40))
    make_pairs(tmp_path / "data", [mask] * 5)
    labels = ("--labels", "{disc: [128, 255], cup: [255]}")
    shard_seg("pairs", tmp_path / "data", tmp_path / "set", *PATTERNS, *labels)
    record = ShardDataset(tmp_path / "set").record(0)
    assert np.array_equal(record.mask, mask)
    assert record.meta["present"] == ["disc", "cup"]


def test_masks_of_uncertain_meaning_are_refused(tmp_path, capsys):
    soft = np.linspace(0, 255, 1600).astype(np.uint8).reshape(40, 40)
    coloured = np.zeros((40, 40, 3), np.uint8)
    coloured[:9, :, 0] = 255
    make_pairs(tmp_path / "data", [soft, coloured])
    with pytest.raises(SystemExit):
        shard_seg("pairs", tmp_path / "data", tmp_path / "set", *PATTERNS)
    reasons = (tmp_path / "set" / "quarantine.jsonl").read_text()
    assert "256 grey values from 0 to 255: give --labels" in reasons and "is coloured" in reasons
    options = (*PATTERNS, "--threshold", "128", "--max-bad", "0.5", "--split", "{train: 1.0}")
    shard_seg("pairs", tmp_path / "data", tmp_path / "set2", *options)
    assert np.array_equal(ShardDataset(tmp_path / "set2").record(0).mask, soft >= 128)


def test_pairs_that_do_not_match_are_told(tmp_path):
    make_pairs(tmp_path / "data", [np.zeros((40, 40), np.uint8)] * 2)
    (tmp_path / "data" / "p0_eye1 mask.png").unlink()
    layout = find_layout("pairs", "segmentation")

    def references(**options):
        return layout(input=tmp_path / "data", mask="* mask.png", **options).references()

    with pytest.raises(UserError, match=r"p0_eye1\.jpg has no mask p0_eye1 mask\.png \(1 of 2"):
        references(image="*.jpg")
    with pytest.raises(UserError, match="not a pattern with one"):
        references(image="a.jpg")
    with pytest.raises(UserError, match="no file below the input matches"):
        references(image="*.tif")


def test_samples_hold_a_slab_out(tmp_path):
    held, tested = samples.HELD_OUT, samples.TEST_SLICES
    assert not set(held) & set(samples.TRAIN_SLICES) and set(tested) < set(held)
    assert min(tested.start - held.start, held.stop - tested.stop) >= 7
    main(["shard-seg", "--layout", "samples", "--output", str(tmp_path / "set")])
    whole = samples.template().get_fdata()
    for split, slices in (("train", samples.TRAIN_SLICES), ("test", samples.TEST_SLICES)):
        dataset = ShardDataset(tmp_path / "set", split)
        records = [dataset.record(index) for index in range(len(dataset))]
        places = {(record.meta["slice"], *record.meta["corner"]) for record in records}
        assert len(records) == len(places) == 4 * len(slices)
        assert {depth for depth, _, _ in places} == set(slices)
        for record in records[:: len(slices) // 2]:
            assert record.image.shape == record.mask.shape == (112, 112)
            column, row = record.meta["corner"]
            # front is up and the patient's right is on the left
            expected = whole[::-1, ::-1, record.meta["slice"]].T
            expected = expected[row : row + 112, column : column + 112]
            assert np.corrcoef(record.image.ravel(), expected.ravel())[0, 1] > 0.99
            tissue = [record.image[record.mask == value].mean() for value in (0, 1, 2)]
            assert tissue[0] + 50 < tissue[1] < tissue[2] - 25  # fat-bright white matter in T1


def test_views_of_the_samples_cover_the_brain():
    brain = samples.volume_from_nifti(samples.tissue_map()).array.any(axis=0)
    for row, column in samples.CORNERS:
        brain[row : row + samples.VIEW, column : column + samples.VIEW] = False
    assert not brain.any()


def test_stage_one_samples_never_see_the_slab():
    image = samples.template()
    layout = samples.Samples(planes=("axial", "coronal", "sagittal"))
    seen = {}
    for reference in layout.references():
        if reference.part != "dicom":
            taken = list(layout.read(reference))
            seen[reference.part] = (len(taken), taken[0].image.shape)
    right, front, head = image.shape
    below, above = samples.HELD_OUT.start, head - samples.HELD_OUT.stop
    for part, height in (("below", below), ("above", above)):
        number, shape = seen[f"axial-{part}"]
        assert shape == (front, right) and number <= height
        assert seen[f"coronal-{part}"][1] == (height, right)
        assert seen[f"sagittal-{part}"][1] == (height, front)
