"""DICOM files and series: masks as DICOM-SEG and NIfTI where the images lie, and no names said."""

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from nibabel.affines import apply_affine
from PIL import Image
from pydicom.data import get_testdata_file
from scipy.ndimage import label

from data_prep.readers.dicom_seg import seg_masks
from data_prep.readers.dicom_series import load_series
from finetune.inference.files.base import Masks, Reading
from finetune.inference.files.dicom_seg import write_seg
from finetune.inference.files.opening import open_image
from finetune.inference.loading import TrainedOn
from helpers import dicom_space

TURN = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
TURN *= np.sign(np.linalg.det(TURN))
GEOMETRIES = {
    "from the feet": {},
    "from the head": {"step": (0.0, 0.0, -2.5)},
    "sagittal": {"orientation": (0.0, 1, 0, 0, 0, -1), "step": (2.5, 0.0, 0.0)},
    "oblique": {"orientation": (*TURN[0], *TURN[1]), "step": tuple(2.5 * TURN[2])},
}


@pytest.fixture
def write_series(make_series, tmp_path, wander):
    """Write a series with two bright objects: folder, files, and values (slices, rows, columns)."""

    def write(name="series", **header):
        values = wander(11, (1, 5), 4).astype(np.uint8)
        values += 2 * wander(11, (6, 9), 40).astype(np.uint8)
        pixels = (values > 0).astype(np.uint16) * 900 + 100
        return tmp_path / name, make_series(tmp_path / name, pixels, **header), values

    return write


def prompts_for(folder, **reading):
    """A click on the larger object and a box around the other, where they are shown."""
    image = open_image(folder, Reading(**reading))
    shown = np.stack([image.read(depth) for depth in range(image.depth)]) > 128
    parts, count = label(shown)
    sizes = np.bincount(parts.ravel())[1:]
    assert count == 2 and sizes[0] != sizes[1]
    places = []
    for number in np.argsort(-sizes) + 1:
        depths = np.flatnonzero((parts == number).any((1, 2)))
        depth = depths[len(depths) // 2]
        rows, columns = np.nonzero(parts[depth] == number)
        places.append((depth, rows, columns))
    (depth, rows, columns), (other, *box) = places
    click = f"{columns.mean().round():.0f},{rows.mean().round():.0f},{depth},1"
    corners = (box[1].min(), box[0].min(), box[1].max() + 1, box[0].max() + 1, other)
    return f"--clicks={click};", f"--box=;{','.join(map(str, corners))}"


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_series_gives_a_dicom_seg(glow, predict, write_series, tmp_path, geometry):
    folder, paths, values = write_series(**GEOMETRIES[geometry])
    output = tmp_path / "mask.dcm"
    predict(glow, f"--input={folder}", f"--output={output}", *prompts_for(folder))
    images = {str(image.SOPInstanceUID): image for image in map(pydicom.dcmread, paths)}
    expected = dict(zip(images, values, strict=True))

    seg = highdicom.seg.segread(output)
    found = seg.get_pixels_by_source_instance(
        list(images), assert_missing_frames_are_empty=True, combine_segments=True
    )
    assert np.array_equal(found, values)
    assert [each.SegmentLabel for each in seg.SegmentSequence] == ["object 1", "object 2"]

    plain = pydicom.dcmread(output)
    assert plain.FrameOfReferenceUID == "1.2.4" and plain.StudyInstanceUID == "1.2.3"
    assert plain.SeriesInstanceUID != "1.2.7" and plain.SegmentationType == "BINARY"
    assert plain.PatientID == "ID-4711" and plain.Modality == "SEG"
    assert {each.ReferencedSOPInstanceUID for each in _references(plain)} == set(images)
    frames = plain.PerFrameFunctionalGroupsSequence
    assert len(frames) == 9  # those that hold an object
    places = []
    for frame, pixels in zip(frames, plain.pixel_array, strict=True):
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(place, images[source].ImagePositionPatient)
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        assert np.array_equal(pixels > 0, expected[source] == number)
        places.append((number, *place))
    normal = np.cross(*np.reshape(images[source].ImageOrientationPatient, (2, 3)))
    for number in (1, 2):  # sorted by position
        heights = [np.dot(normal, place) for segment, *place in places if segment == number]
        assert (np.diff(heights) > 0).all() or (np.diff(heights) < 0).all()

    if dicom_space.HAS_DCMQI:  # there is none for Linux on ARM
        dicom_space.assert_dcmqi_reads(output, paths, values)
    series = load_series(paths)
    voxels = np.asarray(series.image.dataobj).T
    ours = np.zeros(voxels.shape, np.uint8)
    marked = seg_masks(output, series.image.affine, voxels.shape, lambda name: True)
    for name, depth, mask in marked:
        ours[depth][mask] = int(name.removeprefix("object "))
    assert np.array_equal(ours > 0, voxels > 500)


def _references(seg):
    return seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_series_gives_nifti_where_it_lies(glow, predict, write_series, tmp_path, geometry):
    folder, paths, values = write_series(**GEOMETRIES[geometry])
    output = tmp_path / "mask.nii.gz"
    predict(glow, f"--input={folder}", f"--output={output}", *prompts_for(folder))
    mask = nibabel.load(output)
    data = np.asarray(mask.dataobj)
    for number in (1, 2):
        found = apply_affine(mask.affine, np.argwhere(data == number))
        dicom_space.assert_at(found, paths, values == number)


def test_another_plane_than_that_of_training_is_said(glow, predict, write_series, tmp_path, capsys):
    folder, _, _ = write_series(**GEOMETRIES["sagittal"])
    given = (f"--input={folder}", "--no-overlay")
    line = "plane: sagittal, as the series was acquired; the run was trained on axial slices"
    seen = TrainedOn(plane="axial")
    for number, (trained, options, said) in enumerate(
        [(seen, (), True), (TrainedOn(), (), False), (seen, ("--plane=axial",), False)]
    ):
        output = f"--output={tmp_path / f'{number}.nii'}"
        shown = prompts_for(folder, plane="axial" if options else None)
        predict(glow, *given, *shown, *options, output, seen=trained)
        assert (line in capsys.readouterr().out) == said


def test_one_slice_of_a_series(glow, predict, refused, write_series, tmp_path):
    folder, _, _ = write_series()
    given = (f"--input={folder}", "--clicks=12,20,1", "--slice=4", "--no-overlay")
    predict(glow, *given, f"--output={tmp_path / 'mask.png'}")
    shown = open_image(folder, Reading()).read(4) > 128
    assert np.array_equal(np.array(Image.open(tmp_path / "mask.png")) > 0, shown)
    predict(glow, *given, f"--output={tmp_path / 'mask.dcm'}")
    frames = pydicom.dcmread(tmp_path / "mask.dcm").PerFrameFunctionalGroupsSequence
    assert len(frames) == 1
    place = frames[0].PlanePositionSequence[0].ImagePositionPatient
    assert place == [-20, 10, 15]
    predict(glow, *given, f"--output={tmp_path / 'mask.nii'}")
    given = (f"--input={folder}", "--clicks=12,22,1", "--slice=3", "--no-overlay", "--add")
    predict(glow, *given, f"--output={tmp_path / 'mask.nii'}")
    assert np.asarray(nibabel.load(tmp_path / "mask.nii").dataobj).any((0, 1)).sum() == 2
    given = (*given, f"--output={tmp_path / 'mask.dcm'}")
    assert "a DICOM file is not changed once it is written; use NIfTI" in refused(glow, *given)
    assert "must end in .nii.gz or .nii or .dcm" in refused(
        glow, f"--input={folder}", "--clicks=12,20,4,1", f"--output={tmp_path / 'x.png'}"
    )


def test_one_file_gives_a_mask_of_each_format(glow, predict, tmp_path):
    source = get_testdata_file("CT_small.dcm")
    given = (f"--input={source}", "--box=30,40,90,100", "--no-overlay")
    for name in ("mask.png", "mask.nii.gz", "mask.dcm"):
        predict(glow, *given, f"--output={tmp_path / name}")
    png = np.array(Image.open(tmp_path / "mask.png")) > 0
    assert png[45:95, 35:85].any() and not png[:30].any()
    seg, image = pydicom.dcmread(tmp_path / "mask.dcm"), pydicom.dcmread(source)
    assert np.array_equal(seg.pixel_array.squeeze() > 0, png)
    assert seg.FrameOfReferenceUID == image.FrameOfReferenceUID
    nifti = nibabel.load(tmp_path / "mask.nii.gz")
    assert np.array_equal(np.asarray(nifti.dataobj)[..., 0].T > 0, png)
    assert np.allclose(
        nifti.affine[:3, 3], np.array(image.ImagePositionPatient) * dicom_space.LPS_TO_RAS
    )
    assert np.allclose(nifti.header.get_zooms()[:2], image.PixelSpacing)
    predict(glow, *given[:1], "--box=5,5,20,20", "--add", "--value=2", "--no-overlay",
            f"--output={tmp_path / 'mask.nii.gz'}")  # fmt: skip
    added = np.asarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj)[..., 0].T
    assert np.array_equal(added == 1, png)


def test_a_multi_frame_file_is_a_volume(glow, predict, make_enhanced, wander, tmp_path):
    values = wander(11, (1, 5), 4)
    order = 3 * np.arange(11) % 11  # the place of each frame
    source = make_enhanced(
        tmp_path / "multi",
        values[order].astype(np.uint16) * 900 + 100,
        PlanePositionSequence=lambda i: {"ImagePositionPatient": [0, 0, 2.5 * order[i]]},
    )
    given = (f"--input={source}", "--box=3,12,21,30,3", "--no-overlay")
    predict(glow, *given, f"--output={tmp_path / 'mask.dcm'}")
    predict(glow, *given, f"--output={tmp_path / 'mask.nii'}")
    seg = highdicom.seg.segread(tmp_path / "mask.dcm")
    frames = seg.get_pixels_by_source_frame(
        pydicom.dcmread(source).SOPInstanceUID,
        list(range(1, 12)),
        assert_missing_frames_are_empty=True,
    )
    assert np.array_equal(frames[..., 0] > 0, values[order])
    data = np.asarray(nibabel.load(tmp_path / "mask.nii").dataobj).T
    assert np.array_equal(data > 0, values)


def test_several_volumes_in_a_folder_are_listed(glow, predict, refused, write_series, tmp_path):
    write_series("both/a", series="1.2.7")
    write_series("both/b", series="1.2.8", **GEOMETRIES["sagittal"])
    folder = tmp_path / "both"
    given = (
        f"--input={folder}",
        f"--output={tmp_path / 'mask.nii'}",
        "--clicks=9,9,1",
        "--slice=3",
    )
    found = refused(glow, *given)
    assert "holds 2 volumes; choose one with --series: 0 is axial, 11 slices; 1 is sagitt" in found
    assert "series: " in refused(glow, *given, "--series=2")
    predict(glow, *given, "--series=1")
    affine = nibabel.load(tmp_path / "mask.nii").affine
    assert np.allclose(affine[:3, 2], [-2.5, 0, 0]) or np.allclose(affine[:3, 2], [2.5, 0, 0])
    (tmp_path / "empty").mkdir()
    given = (f"--input={tmp_path / 'empty'}", f"--output={tmp_path / 'm.nii'}", "--clicks=9,9,1,1")
    assert "holds no DICOM series" in refused(glow, *given)


def test_options_that_would_do_nothing_are_refused(glow, refused, write_series, tmp_path):
    folder, _, _ = write_series()
    output, box = f"--output={tmp_path / 'mask.png'}", "--box=30,40,90,100"
    single = f"--input={get_testdata_file('CT_small.dcm')}"
    for option in ("plane=coronal", "channel=1", "series=0"):
        found = refused(glow, single, output, box, f"--{option}")
        assert "is not a volume; leave it out" in found and option.partition("=")[0] in found
    found = refused(glow, f"--input={folder}", output, box, "--slice=1", "--channel=1")
    assert "channel: " in found and "is DICOM, not 4D NIfTI; leave it out" in found


def test_the_picture_shows_the_chosen_slice(headed, predict, write_series, tmp_path):
    folder, _, _ = write_series()
    given = (f"--input={folder}", "--target=bright")
    predict(headed, *given, f"--output={tmp_path / 'mask.nii.gz'}", "--slice=2")
    predict(headed, *given, f"--output={tmp_path / 'mask.nii.gz'}", "--slice=4", "--add")
    predict(headed, *given, f"--output={tmp_path / 'alone.nii.gz'}", "--slice=4")
    added, alone = (tmp_path / f"{name}_overlay.png" for name in ("mask", "alone"))
    assert added.read_bytes() == alone.read_bytes()


@pytest.mark.parametrize("charset", [None, "ISO_IR 100", "ISO 2022 IR 87"])
def test_objects_may_be_named_in_any_script(write_series, tmp_path, charset):
    name = {None: "Roe^Jane", "ISO_IR 100": "Müller^Jörg"}.get(charset, "山田^太郎")
    _, paths, values = write_series()
    for path in paths:
        image = pydicom.dcmread(path)
        if charset:
            image.SpecificCharacterSet = ["", charset] if "2022" in charset else charset
        image.PatientName = name
        image.save_as(path)
    texts = {1: "肝臓の腫瘍", 2: "опухоль, größer"}
    masks = Masks(values, texts)
    write_seg(tmp_path / "mask.dcm", [(path, 0) for path in paths], values, masks)
    seg = highdicom.seg.segread(tmp_path / "mask.dcm")
    assert [each.SegmentLabel for each in seg.SegmentSequence] == list(texts.values())
    assert str(pydicom.dcmread(tmp_path / "mask.dcm").PatientName) == name


def test_files_that_were_anonymised_give_a_dicom_seg(glow, predict, write_series, tmp_path):
    folder, paths, _ = write_series()
    for path in paths:
        image = pydicom.dcmread(path)
        for name in ("PatientID", "PatientName", "PatientSex", "StudyDate", "SliceThickness"):
            delattr(image, name)
        image.save_as(path)
    output = tmp_path / "mask.dcm"
    predict(glow, f"--input={folder}", f"--output={output}", *prompts_for(folder))
    assert highdicom.seg.segread(output).PatientID == ""


def test_an_object_that_was_not_found_leaves_an_empty_mask(glow, predict, write_series, tmp_path):
    folder, _, _ = write_series()
    output = tmp_path / "mask.dcm"
    predict(glow, f"--input={folder}", f"--output={output}", "--box=60,60,63,63,0")
    assert not pydicom.dcmread(output).pixel_array.any()


def test_no_message_names_a_patient(
    glow, predict, refused, write_series, tmp_path, capsys, monkeypatch
):
    folder, paths, _ = write_series(ImageComments="Roe^Jane")
    given = (f"--input={folder}", f"--output={tmp_path / 'mask.dcm'}", *prompts_for(folder))
    predict(glow, *given)
    said = capsys.readouterr()
    (tmp_path / "mask.dcm").unlink()
    (tmp_path / "mask_overlay.png").unlink()

    def fail(*arguments, **options):
        raise ValueError("cannot use ID-4711, Roe^Jane")

    with monkeypatch.context() as patch:
        patch.setattr("highdicom.seg.Segmentation", fail)
        found = refused(glow, *given)
    assert "no DICOM-SEG can be made of these images (ValueError); write another format" in found
    assert not list(tmp_path.glob("*.dcm"))
    paths[4].unlink()
    found += refused(glow, *given)
    assert "some are missing" in found
    for text in (said.out, said.err, found):
        assert "Roe" not in text and "4711" not in text
