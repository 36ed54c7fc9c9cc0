"""Cases as files: values, spacing and orientation; and masks in any orientation, or refused."""

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from PIL import Image

from data_prep.common.errors import UserError
from data_prep.loader.dataset import Record
from finetune.external.files import find_mask, read_mask, write_image, write_labels

LABELS = np.random.default_rng(0).integers(0, 300, (4, 5, 6)).astype(np.uint16)


@pytest.fixture
def volume() -> Record:
    image = np.arange(120, dtype=np.uint8).reshape(4, 5, 6)
    return Record("a1", image, LABELS, {"slices": {}, "spacing": [3.0, 0.5, 0.8]})


@pytest.fixture
def picture() -> Record:
    image = np.random.default_rng(1).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Record("b2", image, LABELS[0], {"spacing": None})


def test_a_volume_lies_as_its_slices_say(volume, tmp_path) -> None:
    write_image(volume, tmp_path, colour=False)
    file = nibabel.load(tmp_path / "a1_0000.nii.gz")
    assert nibabel.aff2axcodes(file.affine) == ("R", "A", "S")
    assert np.allclose(file.header.get_zooms(), (0.8, 0.5, 3.0))
    voxels = np.asanyarray(file.dataobj)
    assert voxels.dtype == np.uint8
    # slices from foot to head, rows from front to back, columns from the patient's right to left
    for depth, row, column in ((0, 0, 0), (3, 1, 4), (2, 4, 5)):
        assert voxels[5 - column, 4 - row, depth] == volume.image[depth, row, column]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRA", "IPL"])
def test_a_mask_is_read_in_any_orientation(volume, tmp_path, codes) -> None:
    write_labels(LABELS, volume, tmp_path)
    path = find_mask(tmp_path, "a1", volume.meta)
    file = nibabel.load(path)
    file = nibabel.Nifti1Image(np.asanyarray(file.dataobj), file.affine)
    turn = ornt_transform(io_orientation(file.affine), axcodes2ornt(tuple(codes)))
    turned = file.as_reoriented(turn)
    assert nibabel.aff2axcodes(turned.affine) == tuple(codes)
    path.unlink()
    nibabel.save(turned, tmp_path / "a1.nii")
    assert np.array_equal(read_mask(find_mask(tmp_path, "a1", volume.meta), volume), LABELS)


def test_a_picture_is_a_grey_file_per_channel(picture, tmp_path) -> None:
    write_image(picture, tmp_path, colour=True)
    for channel in range(3):
        file = np.array(Image.open(tmp_path / f"b2_000{channel}.png"))
        assert np.array_equal(file, picture.image[..., channel])
    grey = Record("c3", LABELS[1], LABELS[1], {"spacing": None})
    write_image(grey, tmp_path, colour=True)
    assert np.array_equal(np.array(Image.open(tmp_path / "c3_0002.png")), LABELS[1])
    write_labels(LABELS[0], picture, tmp_path)
    assert np.array_equal(read_mask(find_mask(tmp_path, "b2", picture.meta), picture), LABELS[0])


def test_masks_that_cannot_be_meant_are_refused(volume, picture, tmp_path) -> None:
    def refused(record: Record, array: np.ndarray, message: str) -> None:
        if record is picture:
            Image.fromarray(array).save(path := tmp_path / "b2.png")
        else:
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path := tmp_path / "a1.nii.gz")
        with pytest.raises(UserError) as error:
            read_mask(path, record)
        assert str(path) in str(error.value) and message in str(error.value)

    refused(picture, np.zeros((5, 7), np.uint8), "is 5 x 7 pixels, and its case 5 x 6")
    refused(picture, np.zeros((5, 6, 3), np.uint8) + np.arange(3, dtype=np.uint8), "colour")
    refused(volume, np.zeros((6, 5, 3), np.uint8), "is 3 x 5 x 6 pixels, and its case 4 x 5 x 6")
    refused(volume, np.full((6, 5, 4), 0.4, np.float32), "not whole numbers")
    refused(volume, np.zeros((6, 5, 4, 2), np.uint8), "a mask is one volume of labels")
    (tmp_path / "b2.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"b2\.png"):
        read_mask(tmp_path / "b2.png", picture)
    (tmp_path / "a1.nii.gz").write_bytes(b"\x1f\x8b\x08cut off")
    with pytest.raises(UserError, match=r"a1\.nii\.gz"):
        read_mask(tmp_path / "a1.nii.gz", volume)
