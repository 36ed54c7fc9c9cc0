"""DICOM series with DICOM-SEG and RTSTRUCT labels: each voxel where it belongs."""

import json
import pickle

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from nibabel.spatialimages import SpatialImage
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

from data_prep.__main__ import main
from data_prep.common.errors import UserError
from data_prep.layouts import find_layout
from data_prep.loader.dataset import ShardDataset
from data_prep.options import WriteOptions
from data_prep.readers.nifti import volume_from_nifti
from data_prep.records import Unreadable
from data_prep.shards import write_shards

WHOLE = ("--split", "{train: 1.0}")
SHAPE = (6, 20, 18)
TURN = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
TURN *= np.sign(np.linalg.det(TURN))
OBLIQUE = {"orientation": (*TURN[0], *TURN[1]), "step": 2.5 * TURN[2]}


def volume(seed=0):
    return np.random.default_rng(seed).integers(0, 4000, SHAPE).astype(np.uint16)


def boxes():
    """Two overlapping boxes, (segments, slices, rows, columns) bool; the outer slices are empty."""
    masks = np.zeros((2, *SHAPE), bool)
    masks[0, 1:4, 3:12, 2:9] = True
    masks[1, 2:5, 8:15, 5:16] = True
    return masks


def in_order(array, affine):
    """(D, H, W) of an array (slices, rows, columns), as a NIfTI file of it would be read."""
    return volume_from_nifti(SpatialImage(array.T, affine)).array


def affine_of(paths):
    """(4, 4) RAS+ of a series, from the headers of its first two slices."""
    first, second = (pydicom.dcmread(path) for path in paths[:2])
    affine = np.eye(4)
    across, down = np.reshape(first.ImageOrientationPatient, (2, 3)).astype(float)
    row, column = map(float, first.PixelSpacing)
    start = np.array(first.ImagePositionPatient, float)
    step = np.array(second.ImagePositionPatient, float) - start
    affine[:3] = np.stack([across * column, down * row, step, start], axis=1)
    affine[:2] *= -1
    return affine


def write_seg(path, paths, masks, names=("Liver", "GTV_1"), kind="BINARY", **options):
    """A DICOM-SEG of masks (segments, slices, rows, columns) on a series."""
    descriptions = [
        SegmentDescription(
            number + 1,
            name,
            codes.SCT.Organ,
            codes.SCT.Liver,
            SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, name in enumerate(names)
    ]
    images = [pydicom.dcmread(each) for each in paths]
    if kind == "LABELMAP":
        pixels = (masks * np.arange(1, len(masks) + 1)[:, None, None, None]).max(0).astype(np.uint8)
    else:
        pixels = np.moveaxis(masks, 0, -1)
    seg = Segmentation(
        images,
        pixels if kind == "FRACTIONAL" else pixels.astype(np.uint8),
        SegmentationTypeValues[kind],
        descriptions,
        "1.2.99.1",
        1,
        f"1.2.99.{len(names)}.2",
        1,
        "maker",
        "model",
        "1",
        "serial",
        **options,
    )
    seg.save_as(path)
    return path


def write_rtstruct(path, paths, regions, names, patient="Roe^Jane"):
    """An RTSTRUCT of contours, (N, 3) each in (column, row, slice) of a series."""
    lps = np.diag([-1, -1, 1, 1]) @ affine_of(paths)
    image = pydicom.dcmread(paths[0])
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = RTStructureSetStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.88.1"
    dataset.Modality, dataset.PatientID, dataset.PatientName = "RTSTRUCT", "ID-4711", patient
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = image.StudyInstanceUID, "1.2.88"
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = image.SeriesInstanceUID
    study.ReferencedSOPInstanceUID = image.StudyInstanceUID
    study.RTReferencedSeriesSequence = Sequence([series])
    frame.RTReferencedStudySequence = Sequence([study])
    dataset.ReferencedFrameOfReferenceSequence = Sequence([frame])
    dataset.StructureSetROISequence, dataset.ROIContourSequence = Sequence(), Sequence()
    for number, (name, contours) in enumerate(zip(names, regions, strict=True), start=1):
        named, drawn = Dataset(), Dataset()
        named.ROINumber, named.ROIName = number, name
        drawn.ReferencedROINumber, drawn.ContourSequence = number, Sequence()
        for contour in contours:
            item = Dataset()
            item.ContourGeometricType = "CLOSED_PLANAR" if len(contour) > 1 else "POINT"
            item.NumberOfContourPoints = len(contour)
            points = np.c_[np.array(contour, float), np.ones(len(contour))] @ lps.T
            item.ContourData = [f"{value:.4f}" for value in points[:, :3].ravel()]
            drawn.ContourSequence.append(item)
        dataset.StructureSetROISequence.append(named)
        dataset.ROIContourSequence.append(drawn)
    dataset.save_as(path, enforce_file_format=True)
    return path


def square(low, high, depth):
    return [(low, low, depth), (high, low, depth), (high, high, depth), (low, high, depth)]


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


def read_one(folder, **options):
    """Mask of the only reference, (D, H, W), and the layout."""
    layout = find_layout("dicom", "segmentation")(input=folder, **options)
    (reference,) = layout.references()
    (sample,) = layout.source("dicom", [reference]).read(reference)
    return sample.mask


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


def test_series_without_labels_are_left_out_or_empty(tmp_path, make_series):
    paths = make_series(tmp_path / "ct", volume())
    make_series(tmp_path / "other", volume(1), series="1.2.8", PatientID="B")
    write_seg(tmp_path / "seg", paths, boxes())
    layout = find_layout("dicom", "segmentation")
    references = layout(input=tmp_path, missing="empty").references()
    assert [each.group for each in references] == ["ID-4711", "B"]
    empty = layout(input=tmp_path, missing="empty").source("dicom", references)
    (sample,) = empty.read(references[1])
    assert not sample.mask.any()
    assert [each.group for each in layout(input=tmp_path).references()] == ["ID-4711"]


def test_labels_without_their_images_are_counted(tmp_path, make_series, read_layout):
    paths = make_series(tmp_path / "in" / "ct", volume())
    write_seg(tmp_path / "in" / "seg", paths, boxes())
    gone = make_series(tmp_path / "gone", volume(1), series="1.2.8")
    write_seg(tmp_path / "in" / "lost", gone, boxes())
    assert len(read_layout("shard-seg", "dicom", tmp_path / "in", *WHOLE)["train"]) == 1
    (line,) = (tmp_path / "dicom-shards" / "quarantine.jsonl").read_text().splitlines()
    assert "no series of its patient that it labels is in the input" in json.loads(line)["reason"]


@pytest.mark.parametrize("name", ["GTV Jane", "node 20250131", "id-4711 lesion"])
def test_names_that_may_be_a_patients_are_not_targets(name, tmp_path, make_series):
    paths = make_series(tmp_path / "ct", volume())
    write_rtstruct(tmp_path / "rt", paths, [[square(2, 9, 2)]], [name])
    layout = find_layout("dicom", "segmentation")
    with pytest.raises(UserError, match=r"^labels: a name in rt may say whose it is") as error:
        layout(input=tmp_path).targets()
    assert name not in str(error.value)
    named = layout(input=tmp_path, labels={"lesion": ["*"]})
    assert named.targets() == {"lesion": [1]} and len(named.references()) == 1


def test_targets_that_nothing_is_named_as_are_refused(tmp_path, make_series):
    layout = find_layout("dicom", "segmentation")
    with pytest.raises(UserError, match="no series of CT, MR or PET with"):
        layout(input=tmp_path).references()
    paths = make_series(tmp_path / "ct", volume())
    write_seg(tmp_path / "seg", paths, boxes())
    with pytest.raises(UserError, match="named as those of 'spleen'; of 2 names there are gtv 1"):
        layout(input=tmp_path, labels={"spleen": ["spleen"], "liver": ["liver"]}).references()


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


def test_bytes_do_not_depend_on_workers(tmp_path, make_series, folder_bytes):
    for number in range(4):
        folder = tmp_path / "in" / str(number)
        paths = make_series(folder, volume(number), series=f"1.2.{number}", PatientID=f"P{number}")
        write_seg(folder / "seg", paths, boxes())
    layout = find_layout("dicom", "segmentation")(input=tmp_path / "in")
    source = layout.source("dicom", layout.references())
    for workers in (1, 3):
        output = tmp_path / str(workers)
        write_shards(
            source, WriteOptions(output=output, workers=workers, shard_records=1, salt="s")
        )
    one = folder_bytes(tmp_path / "1")
    assert folder_bytes(tmp_path / "3") == one and len(one) > 8


def test_stage_one_leaves_out_the_patients_that_stage_two_tests_on(tmp_path, make_series):
    folder = tmp_path / "in"
    for number in range(3):
        header = {"series": f"1.2.{number}", "PatientID": f"P{number}"}
        large = np.kron(volume(number), np.ones((1, 2, 2), np.uint16))  # 40 x 36 pixels
        paths = make_series(folder / str(number), large, **header)
        write_seg(folder / str(number) / "seg", paths, np.kron(boxes(), np.ones((1, 1, 2, 2))))
    common = ["--layout=dicom", f"--input={folder}", "--salt=s"]
    labelled, unlabelled = tmp_path / "two", tmp_path / "one"
    main(["shard-seg", *common, f"--output={labelled}", "--split={train: 0.7, test: 0.3}"])
    volumes = ["--series=volumes", "--planes=[axial]", f"--held_out={labelled}"]
    main(["shard", *common, f"--output={unlabelled}", *volumes])
    (tested,) = groups_of(labelled, "test")
    assert len(groups_of(unlabelled, "train")) == 2
    assert tested not in groups_of(unlabelled, "train")


def test_no_patient_number_is_printed(tmp_path, make_series, capfd):
    """Numbers that look like those of one patient are warned of where they are names of files."""
    for number in range(5):
        header = {"series": f"1.2.{number}", "PatientID": f"TCGA-02-{number:04d}"}
        paths = make_series(tmp_path / "in" / str(number), volume(number), **header)
        write_seg(tmp_path / "in" / str(number) / "seg", paths, boxes())
    options = ["--layout=dicom", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'set'}"]
    main(["shard-seg", *options])
    printed = "".join(capfd.readouterr())
    assert "5 records" in printed and "warning" not in printed and "TCGA" not in printed


def groups_of(output, split):
    dataset = ShardDataset(output, split)
    return {dataset.meta(index)["group"] for index in range(len(dataset))}


def test_larger_frames_are_refused_before_they_are_decoded(tmp_path, make_series):
    paths = make_series(tmp_path / "ct", volume())
    path = write_seg(tmp_path / "seg", paths, boxes())
    seg = pydicom.dcmread(path)
    seg.Rows = seg.Columns = 65535
    seg.save_as(path)
    with pytest.raises(Unreadable, match="larger frames"):
        read_one(tmp_path)


def test_bounds_hold_for_labelled_series(tmp_path, make_series):
    paths = make_series(tmp_path / "ct", volume())
    write_seg(tmp_path / "seg", paths, boxes())
    for bound in ("max_pixels", "max_bytes"):
        with pytest.raises(Unreadable, match=bound):
            read_one(tmp_path, **{bound: 300})


def test_workers_are_sent_names_and_not_headers(tmp_path, make_series):
    paths = make_series(tmp_path / "ct", volume())
    write_seg(tmp_path / "seg", paths, boxes())
    layout = find_layout("dicom", "segmentation")(input=tmp_path)
    sent = pickle.dumps(layout.source("dicom", layout.references()).read)
    assert b"gtv 1" in sent and b"ID-4711" not in sent


def test_the_size_of_a_volume_is_known_from_a_header(tmp_path, make_series):
    paths = make_series(tmp_path / "ct", volume())
    write_seg(tmp_path / "seg", paths, boxes())
    for bits in (8, 16):
        layout = find_layout("dicom", "segmentation")(input=tmp_path, bits=bits)
        (reference,) = layout.references()
        (sample,) = layout.read(reference)
        size = sample.image.nbytes + sample.mask.nbytes
        assert layout.stored_bytes(reference) == size


def test_damaged_labels_cost_their_volume(tmp_path, make_series, read_layout):
    for number in range(2):
        folder = tmp_path / "in" / str(number)
        paths = make_series(folder, volume(number), series=f"1.2.{number}")
        path = write_seg(folder / "seg", paths, boxes())
    seg = pydicom.dcmread(path)
    del seg.SegmentsOverlap, seg.SegmentationType
    seg.save_as(path)
    records = read_layout("shard-seg", "dicom", tmp_path / "in", *WHOLE, "--max_bad", "1")["train"]
    assert len(records) == 1
    (line,) = (tmp_path / "dicom-shards" / "quarantine.jsonl").read_text().splitlines()
    assert "its DICOM-SEG cannot be read" in json.loads(line)["reason"]


def test_highdicom_reads_what_it_wrote(tmp_path, make_series):
    """The files of these tests are segmentations to another reader too."""
    paths = make_series(tmp_path / "ct", volume())
    seg = highdicom.seg.segread(write_seg(tmp_path / "seg", paths, boxes()))
    assert seg.get_volume().array.shape[:3] == (4, *SHAPE[1:])


def test_a_study_anonymised_twice_gives_each_patient_its_own(tmp_path, make_series, read_layout):
    """Its UIDs are the same under both numbers."""
    for number, name in enumerate(("A", "B")):
        folder = tmp_path / "in" / name
        paths = make_series(folder, volume(number), PatientID=name)
        for index, path in enumerate(paths):  # as one series with one study
            dataset = pydicom.dcmread(path)
            dataset.SOPInstanceUID = f"1.2.5.{index}"
            dataset.save_as(path)
        seg = pydicom.dcmread(write_seg(folder / "seg", paths, np.roll(boxes(), number, axis=2)))
        seg.PatientID = name
        seg.save_as(folder / "seg")
    records = read_layout("shard-seg", "dicom", tmp_path / "in", *WHOLE)["train"]
    assert len(records) == 2 and len({record.meta["group"] for record in records}) == 2
    found = {(record.mask > 0).tobytes() for record in records}
    assert len(found) == 2
    assert all((record.mask > 0).sum() == boxes().any(0).sum() for record in records)


def test_labels_are_not_drawn_on_another_patients_images(tmp_path, make_series):
    paths = make_series(tmp_path / "ct", volume(), PatientID="A")
    write_seg(tmp_path / "own", paths, boxes())
    write_seg(tmp_path / "others", paths, boxes())
    seg = pydicom.dcmread(tmp_path / "others")
    seg.PatientID = "B"
    seg.save_as(tmp_path / "others")
    layout = find_layout("dicom", "segmentation")(input=tmp_path)
    drawn, left = layout.references()
    assert "own" in drawn.masks and "others" not in drawn.masks
    assert (left.path, left.masks, left.group) == ("others", (), "B")
