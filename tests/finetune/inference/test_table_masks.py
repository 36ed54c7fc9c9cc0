"""Rough masks in a table of prompts, and a folder of masks whose run has been trained on."""

import nibabel
import numpy as np
import pytest
from PIL import Image

from finetune.inference.loading import TrainedOn
from finetune.inference.options import PredictConfig
from finetune.inference.table import digest_of

SQUARES = np.zeros((64, 64), np.uint8)
SQUARES[4:16, 4:16], SQUARES[40:60, 20:50] = 1, 2


@pytest.fixture
def folder(tmp_path, wander):
    """Two pictures of two squares and a volume, and rough masks of what they show."""
    images = tmp_path / "images"
    (images / "rough").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Image.fromarray((SQUARES > 0).astype(np.uint8) * 200).save(images / name)
    rough = np.zeros((64, 64), np.uint8)
    rough[6:14, 5:13] = 255
    Image.fromarray(rough).save(images / "rough" / "one.png")
    rough[rough > 0], rough[44:56, 24:46] = 1, 2
    Image.fromarray(rough).save(images / "rough" / "both.png")
    shown = wander(6, (1, 4)).astype(np.int16)
    for name, data in (("scan", shown), ("rough/scan", shown * (np.arange(6) == 3)[:, None, None])):
        image = nibabel.Nifti1Image(data.T[::-1, ::-1].astype(np.int16), np.eye(4))
        nibabel.save(image, images / f"{name}.nii.gz")
    return images


@pytest.fixture
def run_table(predict, folder, tmp_path):
    def run(segmenter, text: str, *options: str, **more) -> None:
        (tmp_path / "table.csv").write_text(text)
        files = (f"--input={folder}", f"--output={tmp_path / 'masks'}", "--no-overlay")
        predict(segmenter, f"--prompts={tmp_path / 'table.csv'}", *files, *options, **more)

    return run


def read(path):
    return np.array(Image.open(path))


def test_each_row_may_name_a_rough_mask(glow, run_table, tmp_path, capsys):
    """Of one object, whatever its value, or of several; with other prompts or without."""
    table = """file,object,mask,clicks
a.png,2,rough/both.png,
a.png,1,rough/one.png,"10,10,1"
scan.nii.gz,,rough/scan.nii.gz,
"""
    run_table(glow, table, seen=TrainedOn(rough_masks=False))
    found = read(tmp_path / "masks" / "a.png")
    assert np.array_equal(found == 1, SQUARES == 1) and (found[45:55, 25:43] == 2).all()
    volume = np.asarray(nibabel.load(tmp_path / "masks" / "scan.nii.gz").dataobj)
    assert volume.any((0, 1)).tolist() == [False, True, True, True, True, False]
    assert capsys.readouterr().err.count("was never trained to start from a rough mask") <= 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "b.png,3,rough/both.png,,",
            "line 2: mask: {folder}/rough/both.png holds objects 1, 2,",
        ),
        ("b.png,1,rough/none.png,,", "line 2: {folder}/rough/none.png"),
        ("b.png,1,rough/one.png,,\nb.png,1,rough/one.png,,", "line 3: mask: its object has one"),
        (
            'scan.nii.gz,1,rough/scan.nii.gz,,3\nscan.nii.gz,2,,"9,9,1",2',
            "line 2: slice: a mask marks its slices itself; leave it out",
        ),
    ],
)
def test_rough_masks_that_cannot_be_used(glow, run_table, folder, capsys, rows, message):
    with pytest.raises(SystemExit):
        run_table(glow, f"file,object,mask,clicks,slice\n{rows}\n")
    assert message.format(folder=folder) in capsys.readouterr().err


def test_a_slice_alone_is_improved(glow, run_table, tmp_path):
    run_table(glow, "file,mask,slice\nscan.nii.gz,rough/scan.nii.gz,3\n")
    volume = np.asarray(nibabel.load(tmp_path / "masks" / "scan.nii.gz").dataobj)
    assert volume.any((0, 1)).tolist() == [False, False, False, True, False, False]


def test_masks_of_two_models_are_not_mixed(glow, run_table, tmp_path, capsys, monkeypatch):
    table = 'file,clicks\na.png,"10,10,1"\nb.png,"10,10,1"\n'
    run_table(glow, table)
    (tmp_path / "masks" / "b.png").unlink()
    (tmp_path / "masks" / "weights.json").write_text('{"sha256": "of an earlier checkpoint"}')
    with pytest.raises(SystemExit):
        run_table(glow, table)
    assert "was begun with other weights of the run, which has been trained" in (
        capsys.readouterr().err
    )
    assert (tmp_path / "masks" / "a.png").is_file()


def test_the_weights_of_a_run_are_told_apart(run_folder, tmp_path):
    config = PredictConfig(run=str(run_folder), input=tmp_path, output=tmp_path / "x")
    before = digest_of(config)
    newest = sorted((run_folder / "checkpoints").glob("step-*"))[-1]
    newest.rename(newest.with_name("away"))
    assert len(before) == 64 and digest_of(config) != before
