"""NIfTI volumes: upright in every plane, and masks back in the geometry of their file."""

import gzip

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from data_prep.loader.dataset import ShardDataset
from data_prep.readers.nifti import mask_to_nifti, volume_from_nifti
from data_prep.records import Unreadable

ZOOMS = (0.7, 1.1, 2.5)


def image_in(codes, seed=0, shape=(5, 6, 7)):
    """The same anatomy stored along other axes: an RAS volume and its image in `codes`."""
    ras = np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)
    affine = np.diag([*ZOOMS, 1.0])
    affine[:3, 3] = (-30, 20, 11)
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    data = nibabel.orientations.apply_orientation(ras, change)
    return ras, nibabel.Nifti1Image(data, affine @ inv_ornt_aff(change, shape)), affine


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "ASL", "SLA", "LAS"])
def test_slices_are_upright_whatever_the_file_s_axes(codes):
    ras, image, affine = image_in(codes)
    axial = volume_from_nifti(image)
    coronal = volume_from_nifti(image, "coronal")
    sagittal = volume_from_nifti(image, "sagittal")
    for x, y, z in np.ndindex(ras.shape):
        right, front, head = 4 - x, 5 - y, 6 - z  # rows and columns run from there
        assert axial.array[z, front, right] == ras[x, y, z]
        assert coronal.array[y, head, right] == ras[x, y, z]
        assert sagittal.array[x, head, front] == ras[x, y, z]
    assert axial.spacing == pytest.approx((2.5, 1.1, 0.7))
    assert coronal.spacing == pytest.approx((1.1, 2.5, 0.7))
    assert sagittal.spacing == pytest.approx((0.7, 2.5, 1.1))
    assert np.allclose(axial.affine, affine)


@pytest.mark.parametrize(
    ("unit", "millimetres"), [("mm", 1), ("unknown", 1), ("meter", 1000), ("micron", 0.001)]
)
def test_spacing_is_in_millimetres_whatever_the_file_s_unit(unit, millimetres):
    _, image, _ = image_in("RAS")
    image.header.set_xyzt_units(unit)
    expected = [value * millimetres for value in (2.5, 1.1, 0.7)]
    assert volume_from_nifti(image).spacing == pytest.approx(expected)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "ASL"])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_masks_return_to_the_file_s_geometry(codes, plane, tmp_path):
    _, image, _ = image_in(codes)
    nibabel.save(image, tmp_path / "image.nii.gz")
    volume = volume_from_nifti(tmp_path / "image.nii.gz", plane)
    mask = (volume.array > 100).astype(np.uint8)
    nibabel.save(mask_to_nifti(mask, tmp_path / "image.nii.gz", plane), tmp_path / "mask.nii.gz")
    saved = nibabel.load(tmp_path / "mask.nii.gz")
    assert np.array_equal(np.asanyarray(saved.dataobj), np.asanyarray(image.dataobj) > 100)
    assert np.array_equal(saved.affine, nibabel.load(tmp_path / "image.nii.gz").affine)
    assert saved.get_data_dtype() == np.uint8
    with pytest.raises(ValueError, match="does not fit"):
        mask_to_nifti(mask[1:], image, plane)


def test_oblique_images_keep_their_affine():
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    data = np.random.default_rng(0).normal(size=(4, 5, 6))
    image = nibabel.Nifti1Image(data, turn @ np.diag([-1.0, 2, 3, 1]))
    volume = volume_from_nifti(image)
    assert volume.spacing == pytest.approx((3, 2, 1))
    back = mask_to_nifti(volume.array > 0, image)
    assert np.array_equal(back.affine, image.affine)
    assert np.array_equal(np.asanyarray(back.dataobj), data > 0)


def test_the_stored_geometry_leads_from_a_voxel_to_its_place():
    ras, image, _ = image_in("LPS")
    volume = volume_from_nifti(image, "coronal")
    meta = volume.meta()
    place = (3, 1, 2)  # depth, row, column
    voxel = [0, 0, 0]
    for axis, flip, position, size in zip(
        meta["axes"], meta["flips"], place, volume.array.shape, strict=True
    ):
        voxel[axis] = size - 1 - position if flip else position
    assert ras[tuple(voxel)] == volume.array[place]
    expected = np.linalg.inv(image.affine) @ np.array(meta["affine"]) @ [*voxel, 1]
    stored = tuple(np.round(expected[:3]).astype(int))
    assert np.asanyarray(image.dataobj)[stored] == volume.array[place]


def test_scaled_integers_channels_and_nan():
    data = np.arange(2 * 3 * 4 * 2, dtype=np.int16).reshape(2, 3, 4, 2)
    image = nibabel.Nifti1Image(data, np.eye(4))
    image.header.set_slope_inter(2.0, -1000.0)
    raw = nibabel.Nifti1Image.from_bytes(image.to_bytes())
    assert np.array_equal(
        volume_from_nifti(raw, channel=1).array.ravel().sum(), raw.get_fdata()[..., 1].sum()
    )
    with pytest.raises(Unreadable, match="no channel 2"):
        volume_from_nifti(raw, channel=2)
    holes = np.array([[[np.nan, 3.0], [7.0, np.inf]]])
    filled = volume_from_nifti(nibabel.Nifti1Image(holes, np.eye(4))).array
    assert np.isfinite(filled).all() and filled.min() == 3
    with pytest.raises(Unreadable, match="finite"):
        volume_from_nifti(nibabel.Nifti1Image(np.full((2, 2, 2), np.nan), np.eye(4)))


def test_damaged_files_are_refused(tmp_path):
    image = nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(9, 9, 9)), np.eye(4))
    whole = image.to_bytes()
    path = tmp_path / "a.nii"
    path.write_bytes(whole[:-100])
    with pytest.raises(Unreadable, match="fewer than the header says"):
        volume_from_nifti(path)
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(whole)[:-3000])
    with pytest.raises(Unreadable, match="fewer than the header says"):
        volume_from_nifti(tmp_path / "b.nii.gz")
    path.write_bytes(b"no header")
    with pytest.raises(Unreadable, match="not a readable NIfTI"):
        volume_from_nifti(path)
    lying = bytearray(whole)
    lying[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    path.write_bytes(lying)
    with pytest.raises(Unreadable, match="fewer than the header says"):
        volume_from_nifti(path)
    with pytest.raises(Unreadable, match="exceeds max_pixels"):
        volume_from_nifti(image, max_pixels=80)
    with pytest.raises(Unreadable, match="not 3D or 4D"):
        volume_from_nifti(nibabel.Nifti1Image(np.zeros((4, 4)), np.eye(4)))


def test_voxels_count_against_max_bytes():
    image = nibabel.Nifti1Image(np.zeros((9, 8, 7, 5), np.int16), np.eye(4))
    assert volume_from_nifti(image, channel=4, max_bytes=9 * 8 * 7 * 2).array.shape == (7, 8, 9)
    with pytest.raises(Unreadable, match=r"1008 bytes exceed max_bytes \(1007\)"):
        volume_from_nifti(image, max_bytes=1007)


@pytest.fixture
def inflated(monkeypatch):
    """Counts of bytes that gzip inflates."""
    counts, read = [], gzip._GzipReader.read

    def counted(reader, size=-1):
        data = read(reader, size)
        counts.append(len(data))
        return data

    monkeypatch.setattr(gzip._GzipReader, "read", counted)
    return counts


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "claim", ["nothing", "extension", "negative extension", "offset", "voxels"]
)
def test_a_compressed_file_inflates_to_no_more_than_it_needs(
    claim, order, kind, tmp_path, inflated
):
    """Eighty megabytes of zeros lie behind the voxels."""
    image = kind(np.ones((9, 8, 7), np.float32), np.eye(4))
    image = kind(image.dataobj, image.affine, image.header.as_byteswapped(order))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"ten years" * 9))
    data, head = bytearray(image.to_bytes()), image.header.sizeof_hdr
    if "extension" in claim:
        length = -8 if "negative" in claim else 60_000_000
        data[head + 4 : head + 8] = np.array(length, f"{order}i4").tobytes()
    if claim == "offset":
        place, number = (108, f"{order}f4") if head == 348 else (168, f"{order}i8")
        new = np.array(70_000_000, number)
        data[place : place + new.itemsize] = new.tobytes()
    if claim == "voxels":
        place, number = (42, f"{order}i2") if head == 348 else (24, f"{order}i8")
        new = np.array([250, 250, 250], number)
        data[place : place + new.nbytes] = new.tobytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(bytes(data) + bytes(80_000_000), 1))
    if claim == "nothing":
        assert (volume_from_nifti(path).array == 1).all()
        assert len(data) <= sum(inflated)
    else:
        with pytest.raises(Unreadable):
            volume_from_nifti(path, max_bytes=10_000_000)
    assert 0 < sum(inflated) < 1_000_000


def test_layout_slices_the_chosen_planes(tmp_path, shard_folder):
    y, x, z = np.mgrid[:40, :50, :60]
    ball = ((y - 20) ** 2 + (x - 25) ** 2 + (z - 30) ** 2 < 15**2) * 900.0
    (tmp_path / "images").mkdir()
    nibabel.save(nibabel.Nifti1Image(ball, np.diag([1, 2, 3, 1])), tmp_path / "images" / "a.nii.gz")
    document = shard_folder(
        tmp_path / "images", tmp_path / "set", layout="nifti", planes=("axial", "sagittal")
    )
    dataset = ShardDataset(tmp_path / "set")
    records = [dataset.record(index) for index in range(len(dataset))]
    planes = {record.image.shape: record.meta["spacing"] for record in records}
    assert planes == {(50, 40): [2.0, 1.0], (60, 50): [3.0, 2.0]}
    assert document["splits"]["train"]["groups"] == 1
    radius = np.sqrt(0.05 * 40 * 50 / np.pi)  # of a disc that is 5 % of an axial slice
    axial = [record for record in records if record.meta["plane"] == "axial"]
    assert len(axial) == pytest.approx(2 * np.sqrt(15**2 - radius**2), abs=2)
    assert all(set(np.unique(record.image)) == {0, 255} for record in records)
