"""DICOM series as volumes: their place in space, their values, and which are refused."""

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from data_prep.readers.dicom_header import read_elements
from data_prep.readers.dicom_series import load_series
from data_prep.readers.dicom_stacks import read_slice_header, slices_of, split_stacks
from data_prep.readers.nifti import volume_from_nifti
from data_prep.records import NotAnImage, Unreadable

VOLUME = np.random.default_rng(0).integers(0, 4000, (7, 6, 5)).astype(np.uint16)
TURN = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
TURN *= np.sign(np.linalg.det(TURN))


def values(series):
    """(slices, rows, columns)"""
    return np.asanyarray(series.image.dataobj).T


@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"step": (0, 0, -2.5)},
        {"orientation": (0, 1, 0, 0, 0, -1), "step": (1.5, 0, 0)},
        {"orientation": (1, 0, 0, 0, 0, -1), "step": (0, 3, 0)},
        {"orientation": (*TURN[0], *TURN[1]), "step": 2.5 * TURN[2]},
        {"orientation": (*TURN[0], *TURN[1]), "step": -2.5 * TURN[2]},
        {"step": (0, 0.7, 2.4)},  # a tilted gantry
    ],
    ids=["axial", "downward", "sagittal", "coronal", "oblique", "oblique back", "tilted"],
)
def test_a_series_is_what_the_same_volume_is_as_nifti(geometry, tmp_path, make_series):
    paths = make_series(tmp_path / "series", VOLUME, origin=(-20, 10, 5), **geometry)
    across, down = np.reshape(geometry.get("orientation", (1, 0, 0, 0, 1, 0)), (2, 3))
    affine = np.eye(4)
    affine[:3] = np.stack(
        [0.6 * across, 0.8 * down, geometry.get("step", (0, 0, 2.5)), (-20, 10, 5)], axis=1
    )
    affine[:2] *= -1  # DICOM counts to the left and back
    nibabel.save(nibabel.Nifti1Image(VOLUME.transpose(2, 1, 0), affine), tmp_path / "a.nii")
    image = load_series(sorted(paths)).image
    for plane in ("axial", "coronal", "sagittal"):
        series, nifti = (volume_from_nifti(each, plane) for each in (image, tmp_path / "a.nii"))
        assert np.array_equal(series.array, nifti.array)
        assert np.allclose(series.affine, nifti.affine, atol=1e-4)
        assert np.allclose(series.spacing, nifti.spacing, atol=1e-4)
        assert (series.axes, series.flips) == (nifti.axes, nifti.flips)


def at(**changes):
    """Header values of one slice."""
    return {"each": lambda index: changes if index == 3 else {}}


REFUSED = {
    "single slice": (NotAnImage, {"volume": VOLUME[:1]}),
    "2.50 to 5.00 mm apart": (Unreadable, {"each": lambda i: place(i + (i > 3))}),
    "2.50 to 125.00 mm apart": (Unreadable, {"each": lambda i: place(i + 49 * (i > 3))}),
    "shifted": (Unreadable, at(ImagePositionPatient=[-20, 13, 12.5])),
    "several images at one place": (NotAnImage, {"each": lambda i: place(i % 4)}),
    "several orientations": (NotAnImage, at(ImageOrientationPatient=[1, 0, 0, 0, 0, -1])),
    "impossible orientation": (Unreadable, {"orientation": (0, 0, 0, 0, 0, 0)}),
    "several pixel spacings": (NotAnImage, at(PixelSpacing=[0.8, 0.7])),
    "impossible orientation or spacing": (Unreadable, {"spacing": (0, 0.6)}),
    "does not say where": (NotAnImage, at(ImagePositionPatient=None)),
    "several sizes": (NotAnImage, at(Rows=5)),
    "or kinds": (NotAnImage, at(Modality="MR")),
    "colour": (NotAnImage, {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}),
    "mosaic": (NotAnImage, at(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])),
    "truncated": (Unreadable, {"Rows": 7}),
}


def place(index):
    return {"ImagePositionPatient": [-20, 10, 5 + 2.5 * index]}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_no_volume_is_refused_by_its_reason(reason, tmp_path, make_series):
    error, options = REFUSED[reason]
    paths = make_series(tmp_path, **({"volume": VOLUME} | options))
    with pytest.raises(error, match=reason):
        load_series(paths)


def test_positions_rounded_in_the_header_are_even(tmp_path, make_series):
    def rounded(index):
        return {"ImagePositionPatient": [-20, 10, round(0.625 * index, 1)]}

    paths = make_series(tmp_path, VOLUME, each=rounded)
    assert np.array_equal(values(load_series(paths)), VOLUME)


def test_a_gap_between_the_thinnest_slices_is_seen(tmp_path, make_series):
    paths = make_series(tmp_path, VOLUME[:4], step=(0, 0, 0.1))
    assert load_series(paths).image.shape == (5, 6, 4)
    with pytest.raises(Unreadable, match="apart"):
        load_series([*paths[:2], paths[3]])


def test_bounds_of_pixels_and_bytes_are_kept(tmp_path, make_series):
    paths = make_series(tmp_path, VOLUME)
    load_series(paths, max_pixels=30, max_bytes=2 * VOLUME.size)
    with pytest.raises(Unreadable, match="max_pixels"):
        load_series(paths, max_pixels=29)
    with pytest.raises(Unreadable, match="max_bytes"):
        load_series(paths, max_bytes=2 * VOLUME.size - 1)


@pytest.mark.parametrize(
    "key, second",
    [
        (lambda i: {"EchoTime": 10.0 + i % 2}, None),
        (lambda i: {"AcquisitionNumber": 1 + i % 2}, None),
        (lambda i: {"ImageType": ["ORIGINAL", "PRIMARY", "IW"[i % 2]]}, None),
        (lambda i: {"DiffusionBValue": float(i % 2 * 1000), "EchoTime": 7.0}, None),
        (lambda i: {"EchoTime": float(i % 2), "TemporalPositionIdentifier": i // 2 % 2}, 4),
    ],
    ids=["echo", "acquisition", "type", "b-value", "echo and time"],
)
def test_images_at_one_place_are_divided_by_what_tells_them_apart(
    key, second, tmp_path, make_series
):
    count = second or 2
    volume = np.repeat(VOLUME, count, axis=0) + np.arange(7 * count, dtype=np.uint16)[:, None, None]
    paths = make_series(tmp_path, volume, each=lambda i: key(i) | place(i // count))
    headers = [(read_slice_header(path), path) for path in paths]
    slices = [each for header, path in headers for each in slices_of(header, path)]
    stacks = split_stacks(slices)
    assert len(stacks) == count
    for number, stack in enumerate(stacks):
        series = load_series([each.path for each in stack])
        assert np.array_equal(values(series), volume[number::count])


def test_values_are_held_as_the_smallest_integers(tmp_path, make_series):
    cases = {
        np.int16: {"RescaleSlope": 1, "RescaleIntercept": -1024, "BitsStored": 12},
        np.uint16: {},
        np.int32: {"RescaleSlope": 1, "RescaleIntercept": -1024},
    }
    for number, (kind, header) in enumerate(cases.items()):
        paths = make_series(tmp_path / str(number), VOLUME, **header)
        array = values(load_series(paths))
        assert array.dtype == kind
        assert np.array_equal(array, VOLUME.astype(int) + header.get("RescaleIntercept", 0))
    paths = make_series(tmp_path / "signed", VOLUME.astype(np.int16) - 2000)
    assert np.array_equal(values(load_series(paths)), VOLUME.astype(int) - 2000)


def test_each_slice_of_pet_has_its_own_slope(tmp_path, make_series):
    slopes = np.linspace(0.25, 2, 7)
    paths = make_series(
        tmp_path,
        VOLUME,
        Modality="PT",
        RescaleIntercept=0,
        each=lambda index: {"RescaleSlope": float(slopes[index])},
    )
    array = values(load_series(paths))
    assert array.dtype == np.float32
    assert np.allclose(array, VOLUME * slopes[:, None, None], rtol=1e-6)


def test_the_window_is_that_of_the_headers_or_of_all_slices(tmp_path, make_series):
    def window(index):
        return {"WindowCenter": [40.5 + (index == 2) * 500, 1], "WindowWidth": [401, 1]}

    own = load_series(make_series(tmp_path / "own", VOLUME, each=window))
    assert own.limits("auto") == (-160, 240)
    percentiles = tuple(np.percentile(VOLUME, (0.5, 99.5)))
    assert own.limits("percentile") == pytest.approx(percentiles)
    assert own.limits("full") == (VOLUME.min(), VOLUME.max())
    assert own.limits((1.0, 2.0)) == (1, 2)
    lacking = make_series(
        tmp_path / "lacking", VOLUME, each=lambda index: window(index) if index else {}
    )
    assert load_series(lacking).limits("auto") == pytest.approx(percentiles)


def test_padding_does_not_set_the_window(tmp_path, make_series):
    volume = VOLUME.astype(np.int16)
    volume[:, :3] = -2000
    paths = make_series(
        tmp_path, volume, PixelPaddingValue=-2000, RescaleSlope=2, RescaleIntercept=-1024
    )
    inside = volume[:, 3:] * 2.0 - 1024
    assert load_series(paths).limits("full") == (inside.min(), inside.max())


def test_monochrome_1_is_brighter_where_it_is_less(tmp_path, make_series):
    header = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 100, "WindowWidth": 41}
    series = load_series(make_series(tmp_path, VOLUME, **header))
    assert np.array_equal(values(series), -VOLUME.astype(int))
    assert series.limits("auto") == (-119.5, -79.5)
    assert series.in_file(series.limits("auto")) == (79.5, 119.5)
    assert series.limits((10.0, 30.0)) == (-30, -10)


def test_an_enhanced_file_is_a_series(tmp_path, make_enhanced):
    path = make_enhanced(
        tmp_path,
        VOLUME,
        PlanePositionSequence=lambda i: place((3 * i) % 7),
        PixelValueTransformationSequence=lambda i: {"RescaleSlope": i + 1, "RescaleIntercept": -5},
        FrameVOILUTSequence=lambda i: {"WindowCenter": 40.5, "WindowWidth": 401},
    )
    series = load_series([path])
    frames = VOLUME.astype(int) * (np.arange(7)[:, None, None] + 1) - 5
    assert np.array_equal(values(series)[(3 * np.arange(7)) % 7], frames)
    assert series.limits("auto") == (-160, 240)
    assert np.allclose(volume_from_nifti(series.image).spacing, (2.5, 0.8, 0.6))


def test_an_enhanced_file_may_hold_several_volumes(tmp_path, make_enhanced):
    path = make_enhanced(
        tmp_path,
        VOLUME[:6],
        PlanePositionSequence=lambda i: place(i // 2),
        FrameContentSequence=lambda i: {"TemporalPositionIndex": 1 + i % 2},
    )
    for stack in (0, 1):
        assert np.array_equal(values(load_series([path], stack)), VOLUME[stack:6:2])


def test_a_header_that_inflates_without_end_is_not_read(tmp_path, make_series):
    (path,) = make_series(tmp_path, VOLUME[:1])
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.ImageComments = " " * 100_000
    dataset.save_as(path)
    assert read_slice_header(path).Rows == 6
    with pytest.raises(Unreadable, match="inflates to more"):
        read_elements(path, max_bytes=50_000, stop_before_pixels=True)


def test_frames_without_functional_groups_have_no_place(tmp_path, make_series):
    (path,) = make_series(tmp_path, VOLUME[:1], NumberOfFrames=1)
    dataset = pydicom.dcmread(path)
    dataset.NumberOfFrames, dataset.PixelData = 2, VOLUME[:2].tobytes()
    dataset.save_as(path)
    slices = slices_of(read_slice_header(path), path)
    assert [each.position for each in slices] == [None]
