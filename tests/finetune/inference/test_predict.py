"""Prediction on new files: the mask sits where the user clicked, in the file's own geometry."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine
from PIL import Image
from pydicom.data import get_testdata_file

from data_prep.common.cli import run_program
from data_prep.common.errors import UserError
from data_prep.options import ReadOptions
from data_prep.readers.dicom import read_frames
from data_prep.readers.dicom_header import read_header
from data_prep.readers.images import read_image
from data_prep.readers.nifti import volume_from_nifti
from finetune.__main__ import COMMANDS
from finetune.inference.files.base import Reading
from finetune.inference.files.opening import open_image
from finetune.inference.loading import TrainedOn
from finetune.inference.objects import check_inside, parse_object
from finetune.inference.prompted import PromptedImage
from finetune.inference.segmenting import segment


def parse_prompt(clicks: str, box: str):
    """The prompt for the one object of a picture."""
    return parse_object(clicks, box)[None]


@pytest.fixture
def with_discs(discs, monkeypatch):
    """Predict with the stand-in segmenter, whatever run is named."""
    module = "finetune.inference.loading"
    monkeypatch.setattr(f"{module}.load_model", lambda source, device, texts: discs)
    monkeypatch.setattr(f"{module}.trained_on", lambda run: TrainedOn())


def command(*options: str) -> None:
    arguments = ["predict", "--run=run", "--device=cpu", *options]
    run_program("finetune", COMMANDS, arguments)


def error_of(capsys, *options: str) -> str:
    """The one line that a refused command prints."""
    with pytest.raises(SystemExit) as stop:
        command(*options)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def photograph(path: Path, shape: tuple[int, ...] = (120, 90, 3)) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("name", ["photo.png", "photo.jpg"])
def test_a_picture_gives_a_mask_of_its_size(with_discs, discs, tmp_path, name):
    source = photograph(tmp_path / name)
    output = tmp_path / "masks" / "photo.1.png"
    command(f"--input={source}", f"--output={output}", "--clicks=60,30,1 55,95,1 60,40,0")
    mask = np.array(Image.open(output))
    image = read_image(source, ReadOptions()).array
    prompt = parse_prompt("60,30,1 55,95,1 60,40,0", "")
    expected = segment(PromptedImage(discs, image), prompt).mask
    assert mask.shape == (120, 90) and mask.dtype == np.uint8
    assert np.array_equal(mask, expected * 255)
    assert mask[95, 55] == 255 and mask[60, 20] == 0
    overlay = np.array(Image.open(tmp_path / "masks" / "photo.1_overlay.png").convert("RGB"))
    assert overlay.shape[0] > overlay.shape[1]  # upright, as the photograph


def test_clicks_are_taken_as_in_training(with_discs, discs):
    image = np.zeros((64, 64), np.uint8)
    prompted = PromptedImage(discs, image)
    prompt = parse_prompt("20,20,1 24,20,0 40,40,1", "10,10,50,50")
    previous, box = None, prompt.box[None]
    for number in (1, 2, 3):
        points, labels = prompt.points[None, :number], prompt.labels[None, :number]
        one_by_one, previous = prompted.predict(points, labels, box, previous)
    at_once, _ = prompted.predict(prompt.points[None], prompt.labels[None], box)
    assert np.array_equal(segment(prompted, prompt).mask, one_by_one[0])
    discs.previous_mask = False
    assert np.array_equal(segment(prompted, prompt).mask, at_once[0])
    assert not np.array_equal(at_once, one_by_one)
    only_box = segment(prompted, parse_prompt("", "10,10,50,50")).mask
    assert only_box[30, 30] and not only_box[5, 5]


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_keeps_its_geometry_and_the_place_of_the_click(with_discs, tmp_path, plane, suffix):
    rotation = np.array([[0.0, -0.9, 0.1], [1.1, 0.05, 0.0], [0.0, 0.1, -2.0]])
    affine = nibabel.affines.from_matvec(rotation, [10, -20, 30])
    data = np.random.default_rng(0).normal(0, 100, (44, 52, 48)).astype(np.float32)
    source = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(data, affine), source)
    volume = volume_from_nifti(source, plane)
    output = tmp_path / f"mask{suffix}"
    prompt = ("--clicks=15,33,1", "--slice=20", f"--plane={plane}")
    command(f"--input={source}", f"--output={output}", *prompt)
    result = nibabel.load(output)
    mask = np.asarray(result.dataobj)
    assert mask.shape == data.shape and np.allclose(result.affine, affine, atol=1e-5)
    assert set(np.unique(mask)) == {0, 1}
    filled = volume_from_nifti(output, plane).array.any(axis=(1, 2))
    assert np.flatnonzero(filled).tolist() == [20]
    # Where slice, row and column of the click lie in space, from the volume's own geometry.
    canonical = np.zeros(3)
    for place, axis, flip, length in zip(
        (20, 33, 15), volume.axes, volume.flips, volume.array.shape, strict=True
    ):
        canonical[axis] = length - 1 - place if flip else place
    clicked = apply_affine(volume.affine, canonical)
    voxel = np.rint(apply_affine(np.linalg.inv(affine), clicked)).astype(int)
    assert mask[tuple(voxel)] == 1
    inside = np.argwhere(mask)
    assert np.abs(inside.mean(0) - voxel).max() < 1.5  # the stand-in's disc is about the click
    assert (tmp_path / "mask_overlay.png").is_file()


def test_a_slice_is_windowed_as_its_volume_is(tmp_path):
    data = np.zeros((8, 9, 3), np.int16)
    data[..., 0], data[..., 1], data[..., 2] = 0, 50, 100
    source = tmp_path / "scan.nii"
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), source)
    assert (open_image(source, Reading()).read(1) == 128).all()
    assert (open_image(source, Reading(window=(50, 200))).read(1) == 0).all()


def test_dicom_gives_a_png(with_discs, tmp_path):
    source = get_testdata_file("CT_small.dcm")
    output = tmp_path / "ct.png"
    command(f"--input={source}", f"--output={output}", "--box=30,40,90,100")
    mask = np.array(Image.open(output))
    assert mask.shape == (128, 128)
    assert mask[70, 60] == 255 and mask[10, 10] == 0


def test_one_frame_of_a_dicom_file_is_segmented(with_discs, tmp_path, capsys):
    source = get_testdata_file("examples_ybr_color.dcm")
    shown = [frame.image for frame in read_frames(read_header(Path(source)))]
    seen = open_image(Path(source), Reading(slice=4)).read(0)
    assert np.array_equal(seen, shown[4]) and not np.array_equal(shown[4], shown[3])
    output = f"--output={tmp_path / 'a.png'}"
    command(f"--input={source}", output, "--box=30,40,90,100", "--slice=4")
    assert np.array(Image.open(tmp_path / "a.png")).shape == shown[4].shape[:2]
    output = f"--output={tmp_path / 'b.png'}"
    for options in ([], [f"--slice={len(shown)}"], ["--slice=-1"]):
        found = error_of(capsys, f"--input={source}", output, "--box=30,40,90,100", *options)
        assert f"has {len(shown)} slices; choose one of 0 to {len(shown) - 1}" in found


def test_the_real_model_answers(run_folder, tmp_path):
    source = photograph(tmp_path / "photo.png")
    output = tmp_path / "mask.png"
    arguments = [f"--run={run_folder}", f"--input={source}", f"--output={output}"]
    arguments += ["--clicks=60,30,1", "--device=cpu"]
    run_program("finetune", COMMANDS, ["predict", *arguments])
    assert np.array(Image.open(output)).shape == (120, 90)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], 'no prompt: give --clicks "x,y,1", --box "x0,y0,x1,y1", --mask FILE, --text or'),
        (["--clicks=90,30,1"], "clicks: (90, 30) lies outside the image, which is 90 pixels wide"),
        (["--clicks=5,-1,1"], "clicks: (5, -1) lies outside"),
        (["--clicks=5,5"], "clicks: '5,5' is not of the form x,y,label"),
        (["--clicks=5,5,2"], "clicks: '5,5,2' has the label 2"),
        (["--clicks=5,nan,1"], "is not of the form"),
        (["--box=1,2,3"], "box: '1,2,3' is not of the form x0,y0,x1,y1"),
        (["--box=9,2,3,4"], "must have x0 < x1"),
        (["--box=1,2,3,200"], "box: (3, 200) lies outside"),
        (["--clicks=5,5,1", "--slice=2"], "slice: "),
        (["--clicks=5,5,1", "--plane=axial"], "photo.png is a single picture; leave it out"),
        (["--clicks=5,5,1", "--channel=1"], "channel: "),
        (["--clicks=5,5,1", "--series=0"], "series: "),
        (["--clicks=5,5,1", "--output=mask.nii.gz"], "must end in .png"),
        (["--clicks=5,5,1", "--input=missing.png"], "missing.png does not exist"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(with_discs, capsys, tmp_path, options, message):
    source = photograph(tmp_path / "photo.png")
    given = [f"--input={source}", f"--output={tmp_path / 'mask.png'}", *options]
    assert message in error_of(capsys, *given)
    assert not list(tmp_path.glob("mask*"))


def test_unusable_files_are_told_in_one_line(with_discs, capsys, tmp_path):
    output = f"--output={tmp_path / 'mask.png'}"
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    assert "its suffix is none of" in error_of(capsys, f"--input={text}", output, "--box=1,1,2,2")
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no image")
    found = error_of(capsys, f"--input={damaged}", output, "--box=1,1,2,2")
    assert "damaged.png: not an image" in found
    scan = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 9, 5), np.int16), np.eye(4)), scan)
    whole = f"--output={tmp_path / 'mask.nii'}"
    for options in ([], ["--slice=5"], ["--slice=-1"]):
        found = error_of(capsys, f"--input={scan}", whole, "--box=1,1,2,2", *options)
        assert "has 5 slices; choose one of 0 to 4" in found


def test_nothing_is_overwritten(with_discs, capsys, tmp_path):
    source = photograph(tmp_path / "photo.png")
    (tmp_path / "mask.png").write_text("mine")
    found = error_of(
        capsys, f"--input={source}", f"--output={tmp_path / 'mask.png'}", "--clicks=5,5,1"
    )
    assert "mask.png is there already" in found
    assert (tmp_path / "mask.png").read_text() == "mine"


def test_the_picture_can_be_left_out(with_discs, capsys, tmp_path):
    source, output = photograph(tmp_path / "photo.png"), tmp_path / "mask.png"
    (tmp_path / "mask_overlay.png").write_text("mine")
    given = (f"--input={source}", f"--output={output}", "--clicks=5,5,1")
    assert "mask_overlay.png is there already" in error_of(capsys, *given)
    command(*given, "--no-overlay")
    assert output.is_file() and (tmp_path / "mask_overlay.png").read_text() == "mine"
    assert "overlay" not in capsys.readouterr().out


def test_several_objects_are_those_of_a_call_each(discs):
    prompted = PromptedImage(discs, np.zeros((90, 120), np.uint8))
    boxes = np.array([[10, 10, 50, 50], [60, 30, 110, 80]])
    together, low_res = prompted.predict(boxes=boxes)
    assert together.shape == (2, 90, 120) and low_res.shape == (2, 1, 16, 16)
    for box, mask in zip(boxes, together, strict=True):
        assert np.array_equal(prompted.predict(boxes=box[None])[0][0], mask)


def test_the_edge_of_the_image_is_inside_it():
    check_inside(parse_prompt("0,0,1 89,119,0", "0,0,90,120"), (120, 90))
    with pytest.raises(UserError, match=r"box: \(91, 120\)"):
        check_inside(parse_prompt("", "0,0,91,120"), (120, 90))
    with pytest.raises(UserError, match=r"\(89\.5, 119\)"):
        check_inside(parse_prompt("89.5,119,1", ""), (120, 90))
