"""Whole volumes: masks carried from the prompted slices, NIfTI in and out."""

import nibabel
import numpy as np
import pytest

from data_prep.readers.nifti import mask_to_nifti, volume_from_nifti
from finetune.inference.prompted import Answer
from finetune.inference.volume import PromptedVolume, carry_through, propagate
from finetune.prompts.boxes import box_of

AFFINE = nibabel.affines.from_matvec(
    np.array([[0.0, -0.9, 0.1], [1.1, 0.05, 0.0], [0.0, 0.1, -2.0]]), [10, -20, 30]
)


@pytest.fixture
def write_scan(tmp_path):
    """Write a volume of bright masks (D, H, W), shown upright, as NIfTI on oblique axes."""

    def write(mask: np.ndarray, name: str = "scan.nii.gz"):
        depth, height, width = mask.shape
        space = nibabel.Nifti1Image(np.zeros((height, width, depth), np.int16), AFFINE)
        nibabel.save(mask_to_nifti(mask.astype(np.int16) * 300, space), tmp_path / name)
        return tmp_path / name

    return write


def answers(volume, mask, *places):
    """What the model makes of the boxes of some slices."""
    found = {}
    for depth in places:
        masks, logits = volume[depth].predict(boxes=box_of(mask[depth])[None])
        found[depth] = Answer(masks[0], logits=logits)
    return found


def as_image(mask):
    return (mask.astype(np.uint8) * 200).__getitem__


def test_each_slice_is_carried_to_from_the_nearest_prompted_one(glow, wander):
    left, right = wander(12, (1, 5)), wander(12, (6, 10), column=44)
    mask = left | right
    volume = PromptedVolume(glow, 12, as_image(mask))
    given = answers(volume, left, 2) | answers(volume, right, 8)
    assert np.array_equal(carry_through(volume, given), mask)  # half-way is between 5 and 6
    assert np.array_equal(carry_through(volume, {2: given[2]}), left)
    assert np.array_equal(carry_through(volume, {8: given[8]}), right)


def test_one_slice_is_carried_as_before(glow, wander):
    mask = wander(9, (2, 6))
    volume = PromptedVolume(glow, 9, as_image(mask))
    start = answers(volume, mask, 4)[4]
    assert np.array_equal(propagate(volume, 4, start.mask, start.logits), mask)


def test_a_prompted_slice_without_the_object_ends_it(glow, wander):
    mask = wander(12, (0, 11))
    volume = PromptedVolume(glow, 12, as_image(mask))
    start = answers(volume, mask, 3)[3]
    nothing = Answer(np.zeros((64, 64), bool), logits=start.logits)
    found = carry_through(volume, {3: start, 5: nothing})
    assert found.any((1, 2)).tolist() == [depth <= 4 for depth in range(12)]


def test_each_slice_is_encoded_once_and_only_where_the_mask_goes(glow, wander):
    mask = wander(30, (10, 14))
    volume = PromptedVolume(glow, 30, as_image(mask))
    carry_through(volume, answers(volume, mask, 11, 13))
    assert glow.encoded == 7  # five with the object, and the first without it at either end


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_whole_nifti_volume_is_segmented(glow, predict, write_scan, wander, tmp_path, suffix):
    first, second = wander(14, (1, 6), 4), wander(14, (7, 12), 40)
    source, output = write_scan(first | second), tmp_path / f"mask{suffix}"
    volume = volume_from_nifti(source).array
    assert np.array_equal(volume > 0, first | second)
    prompts = ("--clicks=10,20,4,1; ", "--box=; 39,17,57,35,8 39,20,57,38,11")
    predict(glow, f"--input={source}", f"--output={output}", *prompts)
    saved = nibabel.load(output)
    assert np.allclose(saved.affine, AFFINE, atol=1e-5) and saved.get_data_dtype() == np.uint8
    found = volume_from_nifti(output).array
    assert np.array_equal(found, first + 2 * second.astype(np.uint8))
    assert (tmp_path / "mask_overlay.png").is_file()


def test_a_second_slice_is_added(glow, predict, refused, write_scan, wander, tmp_path):
    mask = wander(8, (1, 6))
    files = (f"--input={write_scan(mask)}", f"--output={tmp_path / 'mask.nii.gz'}")
    predict(glow, *files, "--clicks=25,20,1", "--slice=3")
    predict(glow, *files, "--clicks=25,22,1", "--slice=5", "--add")
    found = volume_from_nifti(tmp_path / "mask.nii.gz").array
    assert found.any((1, 2)).tolist() == [depth in (3, 5) for depth in range(8)]
    assert np.array_equal(found[[3, 5]] > 0, mask[[3, 5]]) and found.max() == 1
    data = nibabel.load(tmp_path / "mask.nii.gz")
    moved = np.array(data.affine)
    moved[:3, 3] += 5
    nibabel.save(nibabel.Nifti1Image(np.asarray(data.dataobj), moved), tmp_path / "mask.nii.gz")
    given = (*files, "--clicks=25,22,1", "--slice=5", "--add")
    assert "lies elsewhere in space" in refused(glow, *given)
    cropped = nibabel.Nifti1Image(np.asarray(data.dataobj)[:, :, 1:], data.affine)
    nibabel.save(cropped, tmp_path / "mask.nii.gz")
    assert "voxels, and the image has" in refused(glow, *given)


def test_a_rough_mask_of_a_volume_is_improved(glow, predict, write_scan, wander, tmp_path):
    mask = wander(10, (2, 7))
    source = write_scan(mask)
    rough = np.zeros_like(mask)
    rough[4, 16:28, 22:34] = True
    saved = mask_to_nifti(rough, source)
    nibabel.save(saved, tmp_path / "rough.nii")
    files = (f"--input={source}", f"--output={tmp_path / 'mask.nii'}")
    predict(glow, *files, f"--mask={tmp_path / 'rough.nii'}")
    found = volume_from_nifti(tmp_path / "mask.nii").array
    assert found.any((1, 2)).tolist() == [2 <= depth <= 7 for depth in range(10)]
    assert not found[~mask].any()


def test_a_head_sees_every_slice(headed, predict, write_scan, wander, tmp_path):
    mask = wander(9, (2, 6)) | wander(9, (0, 8), 42)
    source = write_scan(mask)
    files = (f"--input={source}", f"--output={tmp_path / 'mask.nii'}")
    predict(headed, *files, "--target=bright")
    assert np.array_equal(volume_from_nifti(tmp_path / "mask.nii").array > 0, mask)
    assert headed.encoded == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clicks=5,5,1"], "or name it in each prompt"),
        (["--clicks=5,5,9,1"], "9 is not one of the image's slices, 0 to 8"),
        (["--clicks=5,5,2,1", "--slice=2"], "leave --slice out"),
        (["--clicks=5,5,2,1", "--output=mask.png"], "must end in .nii.gz or .nii"),
        (["--clicks=5,5,2,1", "--series=1"], "series: "),
        (["--clicks=5,65,2,1"], "lies outside the image, which is 64 pixels wide"),
    ],
)
def test_what_does_not_fit_is_refused(
    glow, refused, write_scan, wander, tmp_path, options, message
):
    files = (f"--input={write_scan(wander(9, (2, 6)))}", f"--output={tmp_path / 'mask.nii'}")
    assert message in refused(glow, *files, *options)
    assert not list(tmp_path.glob("mask*"))
