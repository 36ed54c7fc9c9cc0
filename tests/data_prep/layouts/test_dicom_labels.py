"""DICOM series with DICOM-SEG and RTSTRUCT labels: each voxel where it belongs."""

import json

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest

from data_prep.layouts import find_layout
from data_prep.records import Unreadable
from helpers.dicom_labels import (
    OBLIQUE,
    SHAPE,
    WHOLE,
    affine_of,
    boxes,
    in_order,
    read_one,
    square,
    volume,
    write_rtstruct,
    write_seg,
)


@pytest.mark.parametrize("geometry", [{}, {"step": (0, 0, -2.5)}, OBLIQUE])
def test_overlapping_segments_lie_on_their_voxels(geometry, tmp_path, make_series, read_layout):
    paths = make_series(tmp_path / "in" / "ct", volume(), **geometry)
    make_series(tmp_path / "in" / "unlabelled", volume(1), series="1.2.8")
    masks = boxes()
    write_seg(tmp_path / "in" / "labels", paths, masks)
    (record,) = read_layout("shard-seg", "dicom", tmp_path / "in", *WHOLE)["train"]
    affine = affine_of(paths)
    image = in_order(volume(), affine)
    low, high = np.percentile(image, (0.5, 99.5))
    assert np.abs(record.image / 255 - np.clip((image - low) / (high - low), 0, 1)).max() < 0.003
    assert record.meta["present"] == ["gtv 1", "liver"]  # by name, so gtv 1 is bit 0
    assert np.array_equal(record.mask, in_order(masks[1] + 2 * masks[0], affine))
    assert record.meta["modality"] == "CT"


def test_a_labelled_series_is_what_it_is_as_nifti(tmp_path, make_series, read_layout):
    paths = make_series(tmp_path / "in" / "ct", volume(), **OBLIQUE)
    masks = boxes() & [[[[True]]], [[[False]]]]
    write_seg(tmp_path / "in" / "seg", paths, masks[:1], names=("liver",))
    for folder, array in (("imagesTr", volume()), ("labelsTr", masks[0].astype(np.uint8))):
        (tmp_path / "nifti" / folder).mkdir(parents=True)
        image = nibabel.Nifti1Image(array.T, affine_of(paths))
        nibabel.save(image, tmp_path / "nifti" / folder / "case.nii.gz")
    (tmp_path / "nifti" / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "CT"}})
    )
    (dicom,) = read_layout("shard-seg", "dicom", tmp_path / "in", *WHOLE)["train"]
    (nifti,) = read_layout("shard-seg", "nnunet", tmp_path / "nifti", *WHOLE)["train"]
    assert np.array_equal(dicom.image, nifti.image) and np.array_equal(dicom.mask, nifti.mask)
    assert dicom.meta.keys() == nifti.meta.keys()
    for name in ("spacing", "affine"):
        assert np.allclose(dicom.meta[name], nifti.meta[name], atol=1e-4)
    for name in dicom.meta.keys() - {"spacing", "affine", "group"}:
        assert dicom.meta[name] == nifti.meta[name]


def test_fractions_of_half_and_more_are_of_a_segment(tmp_path, make_series):
    paths = make_series(tmp_path / "ct", volume())
    fractions = np.random.default_rng(0).choice([0.0, 0.3, 0.49, 0.51, 1.0], (1, *SHAPE))
    write_seg(tmp_path / "seg", paths, fractions, names=("liver",), kind="FRACTIONAL")
    assert np.array_equal(read_one(tmp_path), in_order(fractions[0] > 0.5, affine_of(paths)))


def test_a_label_map_has_its_segments(tmp_path, make_series):
    paths = make_series(tmp_path / "ct", volume())
    masks = boxes()
    masks[0] &= ~masks[1]
    write_seg(tmp_path / "seg", paths, masks, kind="LABELMAP")
    expected = in_order(masks[1] + 2 * masks[0], affine_of(paths))
    assert np.array_equal(read_one(tmp_path), expected)


def test_a_mirrored_and_turned_segmentation_fits(tmp_path, make_series):
    paths = make_series(tmp_path / "ct", volume(), spacing=(0.7, 0.7))
    masks = boxes()[:1]
    path = write_seg(tmp_path / "seg", paths, masks, names=("liver",))
    seg = pydicom.dcmread(path)
    # the same voxels, stored by columns from the right and rows as columns
    frames = seg.pixel_array.transpose(0, 2, 1)[:, ::-1]
    seg.Rows, seg.Columns = SHAPE[2], SHAPE[1]
    seg.PixelData = np.packbits(frames.ravel(), bitorder="little").tobytes()
    shared = seg.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [0, 1, 0, -1, 0, 0]
    for group in seg.PerFrameFunctionalGroupsSequence:
        x, y, z = group.PlanePositionSequence[0].ImagePositionPatient
        group.PlanePositionSequence[0].ImagePositionPatient = [x + 0.7 * 17, y, z]
    seg.save_as(path)
    assert np.array_equal(read_one(tmp_path), in_order(masks[0], affine_of(paths)))


@pytest.mark.parametrize(
    "reason, change",
    [
        ("another grid", lambda place: [place[0] + 0.3, place[1], place[2]]),
        ("another grid", lambda place: [place[0], place[1], place[2] + 1.2]),
        ("outside the series", lambda place: [place[0], place[1], place[2] + 50]),
        ("cannot be read", lambda place: None),
    ],
)
def test_a_segmentation_elsewhere_is_refused(reason, change, tmp_path, make_series):
    paths = make_series(tmp_path / "ct", volume())
    path = write_seg(tmp_path / "seg", paths, boxes())
    assert read_one(tmp_path).any()
    seg = pydicom.dcmread(path)
    for group in seg.PerFrameFunctionalGroupsSequence:
        place = group.PlanePositionSequence[0]
        place.ImagePositionPatient = change(place.ImagePositionPatient)
    seg.save_as(path)
    with pytest.raises(Unreadable, match=reason):
        read_one(tmp_path)


@pytest.mark.parametrize("geometry", [{}, OBLIQUE])
def test_contours_are_filled_with_their_holes(geometry, tmp_path, make_series):
    paths = make_series(tmp_path / "ct", volume(), **geometry)
    outer, hole = square(2.5, 12.5, 2), square(5.5, 8.5, 2)
    keyhole = [*square(1.6, 9.4, 4), (1.6, 1.6, 4), *square(3.5, 6.5, 4)[::-1]]
    keyhole += [keyhole[5], (1.6, 1.6, 4)]
    write_rtstruct(
        tmp_path / "rt",
        paths,
        [[outer, hole], [keyhole, [(3, 3, 1)]], [square(0.5, 3.5, 2)]],
        ["Liver", "GTV", "Skin"],
    )
    expected = np.zeros(SHAPE, np.uint8)
    expected[2, 3:13, 3:13] |= 2
    expected[2, 6:9, 6:9] &= ~np.uint8(2)
    expected[4, 2:10, 2:10] |= 1
    expected[4, 4:7, 4:7] &= ~np.uint8(1)
    mask = read_one(tmp_path, labels={"tumour": ["GTV*"], "liver": ["liver"]})
    assert np.array_equal(mask, in_order(expected, affine_of(paths)))


@pytest.mark.parametrize(
    "reason, contour",
    [
        ("do not lie in the slices", square(2, 9, 2.5)),
        ("do not lie in the slices", [(2, 2, 1), (9, 2, 1), (9, 9, 3)]),
        ("outside the series", square(2, 9, 7)),
    ],
)
def test_contours_off_the_slices_are_refused(reason, contour, tmp_path, make_series):
    paths = make_series(tmp_path / "ct", volume())
    write_rtstruct(tmp_path / "rt", paths, [[contour]], ["liver"])
    with pytest.raises(Unreadable, match=reason):
        read_one(tmp_path)


def test_files_of_labels_of_one_series_are_united(tmp_path, make_series):
    paths = make_series(tmp_path / "ct", volume())
    masks = boxes()
    write_seg(tmp_path / "seg", paths, masks[:1], names=("GTV_1",))
    write_rtstruct(tmp_path / "rt", paths, [[square(0.5, 3.5, 0)]], ["gtv 1"])
    expected = masks[0].copy()
    expected[0, 1:4, 1:4] = True
    assert np.array_equal(read_one(tmp_path), in_order(expected, affine_of(paths)))


def test_labels_go_to_the_phase_whose_images_they_name(tmp_path, make_series):
    place = [{"ImagePositionPatient": [-20, 10, 2.5 * (i // 2)]} for i in range(12)]
    paths = make_series(
        tmp_path / "ct",
        np.repeat(volume(), 2, axis=0),
        each=lambda index: place[index] | {"AcquisitionNumber": index % 2},
    )
    write_seg(tmp_path / "seg", paths[1::2], boxes())
    layout = find_layout("dicom", "segmentation")(input=tmp_path)
    (reference,) = layout.references()
    named = {path.relative_to(tmp_path).as_posix() for path in paths[1::2]}
    assert set(reference.masks) == named | {"", "seg"}


def test_more_than_eight_targets_may_not_overlap(tmp_path, make_series):
    paths = make_series(tmp_path / "ct", volume())
    contours = [[square(2 * n - 0.5, 2 * n + 0.5, 2)] for n in range(9)]
    names = [f"node {letter}" for letter in "abcdefghi"]
    write_rtstruct(tmp_path / "rt", paths, contours, names)
    expected = np.zeros(SHAPE, np.uint8)
    expected[2, 2 * np.arange(9), 2 * np.arange(9)] = np.arange(1, 10)
    assert np.array_equal(read_one(tmp_path), in_order(expected, affine_of(paths)))
    write_rtstruct(tmp_path / "rt", paths, [contours[0], *contours[:8]], names)
    with pytest.raises(Unreadable, match="its targets overlap"):
        read_one(tmp_path)


def test_highdicom_reads_what_it_wrote(tmp_path, make_series):
    """The files of these tests are segmentations to another reader too."""
    paths = make_series(tmp_path / "ct", volume())
    seg = highdicom.seg.segread(write_seg(tmp_path / "seg", paths, boxes()))
    assert seg.get_volume().array.shape[:3] == (4, *SHAPE[1:])
