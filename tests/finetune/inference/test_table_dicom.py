"""Tables that name DICOM files, whose names and suffixes say little."""

import shutil

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file


@pytest.fixture
def run_table(predict, tmp_path):
    """Predict by a table on the images of a folder."""

    def run(segmenter, text: str, *options: str) -> None:
        (tmp_path / "table.csv").write_text(text)
        files = (f"--input={tmp_path / 'images'}", f"--output={tmp_path / 'masks'}")
        table = f"--prompts={tmp_path / 'table.csv'}"
        predict(segmenter, table, *files, "--no-overlay", *options)

    return run


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"config.yaml", "rows.jsonl", "weights.json"}


def test_files_and_folders_that_are_named_by_uids_have_masks_of_their_own(
    glow, run_table, make_series, wander, tmp_path
):
    pixels = wander(4, (0, 3), 4).astype(np.uint16) * 900 + 100
    for number in (1, 2):
        make_series(tmp_path / "images" / f"1.2.840.5.{number}", pixels)
        (path, *_) = make_series(tmp_path / "single", pixels[:1])
        path.rename(tmp_path / "images" / f"1.2.840.6.{number}")
    lines = [f'1.2.840.5.{number},"10,15,1",1' for number in (1, 2)]
    lines += [f'1.2.840.6.{number},"10,15,1",' for number in (1, 2)]
    run_table(glow, "\n".join(["file,clicks,slice", *lines]))
    assert names(tmp_path / "masks") == {
        *(f"1.2.840.5.{number}.nii.gz" for number in (1, 2)),
        *(f"1.2.840.6.{number}.png" for number in (1, 2)),
    }


def test_a_multi_frame_file_is_a_volume(glow, run_table, make_enhanced, wander, tmp_path):
    values = wander(6, (1, 4), 4)
    pixels = values.astype(np.uint16) * 900 + 100
    source = make_enhanced(
        tmp_path / "made",
        pixels,
        PlanePositionSequence=lambda i: {"ImagePositionPatient": [0, 0, 2.5 * i]},
    )
    (tmp_path / "images").mkdir()
    for name in ("whole.dcm", "one.dcm"):
        (tmp_path / "images" / name).write_bytes(source.read_bytes())
    run_table(glow, 'file,box,slice\nwhole.dcm,"3,12,21,30,3",\none.dcm,"3,12,21,30",3\n')
    assert names(tmp_path / "masks") == {"whole.nii.gz", "one.nii.gz"}
    whole, one = (
        np.asarray(nibabel.load(tmp_path / "masks" / name).dataobj).T
        for name in ("whole.nii.gz", "one.nii.gz")
    )
    assert np.array_equal(whole > 0, values)
    assert np.flatnonzero(one.any((1, 2))).tolist() == [3] and np.array_equal(one[3], whole[3])


def test_a_frame_of_a_cine_is_chosen_by_its_row(glow, run_table, predict, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    source = tmp_path / "images" / "cine.dcm"
    shutil.copy(get_testdata_file("examples_ybr_color.dcm"), source)
    for text, message in (
        ('file,box\ncine.dcm,"0,0,320,240"\n', "line 2: slice: "),
        (
            'file,object,box,slice\ncine.dcm,1,"0,0,320,240",3\ncine.dcm,2,"3,4,9,9",4\n',
            "is not a volume; all of its rows must name the same slice",
        ),
    ):
        with pytest.raises(SystemExit):
            run_table(glow, text)
        said = capsys.readouterr().err
        assert message in said and "--slice" not in said
    run_table(glow, 'file,box,slice\ncine.dcm,"0,0,320,240",4\n')
    given = (f"--input={source}", "--box=0,0,320,240", "--slice=4", "--no-overlay")
    predict(glow, *given, f"--output={tmp_path / 'alone.png'}")
    found, alone = (Image.open(tmp_path / name) for name in ("masks/cine.png", "alone.png"))
    assert np.array_equal(np.array(found), np.array(alone)) and np.array(found).any()
