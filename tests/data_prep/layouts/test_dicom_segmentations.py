"""DICOM-SEG labels: each voxel of a segment where it belongs."""

import highdicom
import numpy as np
import pydicom
import pytest

from data_prep.records import Unreadable

WHOLE = ("--split", "{train: 1.0}")
SHAPE = (6, 20, 18)


@pytest.mark.parametrize("geometry", ["straight", "reversed", "oblique"], indirect=True)
def test_overlapping_segments_lie_on_their_voxels(
    geometry, tmp_path, make_series, read_layout, volume, boxes, in_order, affine_of, write_seg
):
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


def test_fractions_of_half_and_more_are_of_a_segment(
    tmp_path, make_series, volume, in_order, affine_of, write_seg, read_one
):
    paths = make_series(tmp_path / "ct", volume())
    fractions = np.random.default_rng(0).choice([0.0, 0.3, 0.49, 0.51, 1.0], (1, *SHAPE))
    write_seg(tmp_path / "seg", paths, fractions, names=("liver",), kind="FRACTIONAL")
    assert np.array_equal(read_one(tmp_path), in_order(fractions[0] > 0.5, affine_of(paths)))


def test_a_label_map_has_its_segments(
    tmp_path, make_series, volume, boxes, in_order, affine_of, write_seg, read_one
):
    paths = make_series(tmp_path / "ct", volume())
    masks = boxes()
    masks[0] &= ~masks[1]
    write_seg(tmp_path / "seg", paths, masks, kind="LABELMAP")
    expected = in_order(masks[1] + 2 * masks[0], affine_of(paths))
    assert np.array_equal(read_one(tmp_path), expected)


def test_a_mirrored_and_turned_segmentation_fits(
    tmp_path, make_series, volume, boxes, in_order, affine_of, write_seg, read_one
):
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
def test_a_segmentation_elsewhere_is_refused(
    reason, change, tmp_path, make_series, volume, boxes, write_seg, read_one
):
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


def test_larger_frames_are_refused_before_they_are_decoded(
    tmp_path, make_series, volume, boxes, write_seg, read_one
):
    paths = make_series(tmp_path / "ct", volume())
    path = write_seg(tmp_path / "seg", paths, boxes())
    seg = pydicom.dcmread(path)
    seg.Rows = seg.Columns = 65535
    seg.save_as(path)
    with pytest.raises(Unreadable, match="larger frames"):
        read_one(tmp_path)


def test_highdicom_reads_what_it_wrote(tmp_path, make_series, volume, boxes, write_seg):
    """The files of these tests are segmentations to another reader too."""
    paths = make_series(tmp_path / "ct", volume())
    seg = highdicom.seg.segread(write_seg(tmp_path / "seg", paths, boxes()))
    assert seg.get_volume().array.shape[:3] == (4, *SHAPE[1:])
