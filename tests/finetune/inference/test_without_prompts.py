"""A model whose decoder takes no prompts segments all its targets where none are named."""

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

import finetune
from data_prep.common.errors import UserError
from finetune.inference.loading import TrainedOn

PICTURE = np.zeros((64, 64), np.uint8)
PICTURE[10:30, 20:50] = 200
EXPECTED = np.where(PICTURE > 0, 1, 2)


def read(path):
    return np.array(Image.open(path))


@pytest.fixture
def images(tmp_path, make_series, wander):
    """Two pictures, a NIfTI volume, a DICOM series in a folder, and a file that is no image."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(PICTURE).save(folder / "a.png")
    Image.fromarray(PICTURE[::-1]).save(folder / "b.jpg", quality=95)
    volume = wander(5, (1, 3))
    shown = volume.astype(np.int16).T[::-1, ::-1]
    nibabel.save(nibabel.Nifti1Image(shown, np.eye(4)), folder / "scan.nii.gz")
    make_series(folder / "patient", volume.astype(np.uint16) * 900 + 100)
    (folder / "notes.txt").write_text("nothing")
    return folder


def test_a_picture_has_the_values_of_all_targets(headed, predict, images, tmp_path, capsys):
    out = tmp_path / "mask.png"
    predict(headed, f"--input={images / 'a.png'}", f"--output={out}")
    assert np.array_equal(read(out), EXPECTED)
    line = capsys.readouterr().out
    assert "bright: 600 of 4096 pixels" in line and "dark: 3496 of 4096 pixels" in line
    assert (tmp_path / "mask_overlay.png").is_file()
    files = [f"--input={images / 'a.png'}", f"--output={tmp_path / 'other.png'}", "--value=7"]
    predict(headed, *files)
    assert np.array_equal(read(tmp_path / "other.png"), EXPECTED + 6)


def test_a_target_that_is_not_there_leaves_the_others_their_values(headed, predict, tmp_path):
    """A PNG of the first target alone is not of 255, as it is where one object was asked for."""
    bright = tmp_path / "bright.png"
    Image.fromarray(np.full((64, 64), 200, np.uint8)).save(bright)
    predict(headed, f"--input={bright}", f"--output={tmp_path / 'mask.png'}")
    assert np.array_equal(read(tmp_path / "mask.png"), np.ones((64, 64)))
    one = tmp_path / "one.png"
    predict(headed, f"--input={bright}", f"--output={one}", "--target=bright")
    assert np.array_equal(read(one), np.full((64, 64), 255))


def test_volumes_are_seen_in_every_slice_or_in_one(headed, predict, images, tmp_path, wander):
    scan, series = images / "scan.nii.gz", images / "patient"
    expected = np.where(wander(5, (1, 3)), 1, 2)
    predict(headed, f"--input={scan}", f"--output={tmp_path / 'm.nii.gz'}", "--no-overlay")
    found = np.asarray(nibabel.load(tmp_path / "m.nii.gz").dataobj)
    assert np.array_equal(found[::-1, ::-1].T, expected)
    predict(headed, f"--input={scan}", f"--output={tmp_path / 'one.nii'}", "--slice=2")
    found = np.asarray(nibabel.load(tmp_path / "one.nii").dataobj)[::-1, ::-1].T
    assert np.array_equal(found[2], expected[2]) and not found[[0, 1, 3, 4]].any()
    predict(headed, f"--input={series}", f"--output={tmp_path / 'm.dcm'}", "--no-overlay")
    segments = pydicom.dcmread(tmp_path / "m.dcm").SegmentSequence
    assert [each.SegmentLabel for each in segments] == ["bright", "dark"]
    assert {each.SegmentAlgorithmType for each in segments} == {"AUTOMATIC"}


def test_a_table_needs_no_more_than_files(headed, predict, images, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("file,target,slice\na.png,,\nscan.nii.gz,,1\nb.jpg,dark,\n")
    out = tmp_path / "masks"
    predict(headed, f"--prompts={table}", f"--input={images}", f"--output={out}", "--no-overlay")
    assert np.array_equal(read(out / "a.png"), EXPECTED)
    assert np.array_equal(read(out / "b.png") > 0, EXPECTED[::-1] == 2)
    slices = np.asarray(nibabel.load(out / "scan.nii.gz").dataobj).any((0, 1))
    assert slices.tolist() == [False, True, False, False, False]


def test_all_images_of_a_folder_are_segmented(headed, predict, images, capsys):
    out = images / "masks"  # in the folder itself, where it is none of the images
    files = (f"--input={images}", f"--output={out}", "--no-overlay")
    predict(headed, *files)
    names = {path.name for path in out.iterdir()} - {"config.yaml", "rows.jsonl", "weights.json"}
    assert names == {"a.png", "b.png", "scan.nii.gz", "patient.nii.gz"}
    assert np.array_equal(read(out / "a.png"), EXPECTED)
    assert np.array_equal(read(out / "b.png"), EXPECTED[::-1])
    (out / "a.png").unlink()
    (images / "broken.png").write_bytes(b"nothing")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        predict(headed, *files)
    said = capsys.readouterr()
    assert "1 masks written, 3 were there already" in said.out and (out / "a.png").is_file()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert errors[0].startswith("error: broken.png: ") and "not an image" in errors[0]
    assert errors[1].startswith(f"error: input: 1 of 5 images of {images} were not segmented")


def test_prompts_that_are_needed_are_asked_for(glow, headed, predict, refused, images, tmp_path):
    out = f"--output={tmp_path / 'mask.png'}"
    assert "no prompt: give --clicks" in refused(glow, f"--input={images / 'a.png'}", out)
    folder = (f"--input={images}", f"--output={tmp_path / 'masks'}")
    assert "is a folder, and this model needs prompts" in refused(glow, *folder)
    assert "clicks: is for one image" in refused(headed, *folder, "--clicks=1,1,1")
    (tmp_path / "bare").mkdir()
    bare = refused(headed, f"--input={tmp_path / 'bare'}", f"--output={tmp_path / 'new'}")
    assert "holds no pictures, NIfTI files or folders of DICOM series" in bare
    assert not (tmp_path / "mask.png").exists() and not (tmp_path / "new").exists()


def test_in_python_nothing_need_be_named(headed, glow, monkeypatch, wander):
    for name, value in (("load_model", lambda *_: headed), ("trained_on", lambda run: TrainedOn())):
        monkeypatch.setattr(f"finetune.inference.predictor.{name}", value)
    predictor = finetune.Predictor("run", "cpu")
    predictor.set_image(PICTURE)
    masks, scores, _ = predictor.predict()
    assert np.array_equal(masks, [PICTURE > 0, PICTURE == 0]) and scores.shape == (2,)
    assert np.array_equal(predictor.predict(target="dark")[0], [PICTURE == 0])
    volume = wander(5, (1, 3))
    found = predictor.predict_volume(volume.astype(np.uint8) * 200)
    assert np.array_equal(found, [volume, ~volume])
    monkeypatch.setattr("finetune.inference.predictor.load_model", lambda *_: glow)
    predictor = finetune.Predictor("run", "cpu")
    predictor.set_image(PICTURE)
    with pytest.raises(UserError, match="no prompt"):
        predictor.predict()
