"""SAM's frame, against segment_anything itself and pixel by pixel."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates, maximum_filter, minimum_filter
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide

from pretrain.encoder.geometry import Resize
from pretrain.encoder.pixels import PIXEL_MEAN, PIXEL_STD, as_pixels, normalise_pixels

SHAPES = [(1, 1), (1, 9), (3, 200), (200, 3), (37, 53), (64, 64), (100, 31), (131, 257)]


def pixel_under(points):
    """(column, row) of the pixel a point lies on; integers are pixel centres."""
    return np.floor(points + 0.5).astype(int).T


def every_pixel(height, width):
    rows, columns = np.indices((height, width))
    return np.stack([columns, rows], axis=-1).reshape(-1, 2)


def test_size_equals_segment_anything():
    for size in (64, 224, 1024):
        for height in range(1, 1500, 37):
            for width in range(1, 1500, 41):
                expected = ResizeLongestSide.get_preprocess_shape(height, width, size)
                assert Resize((height, width), size).resized == tuple(max(1, n) for n in expected)


def test_every_click_stays_on_its_pixel_when_the_image_grows():
    """Each pixel has its own number; the resized map shows that number under the moved click."""
    for height in range(1, 20):
        for width in range(1, 20):
            for size in (max(height, width), 20, 23, 64, 97):
                numbers = np.arange(1, height * width + 1).reshape(height, width)
                resize = Resize((height, width), size)
                clicks = every_pixel(height, width)
                x, y = pixel_under(resize.points(clicks))
                assert (resize.mask(numbers)[y, x] == numbers.ravel()).all()


@pytest.mark.parametrize("shape", [(41, 57), (64, 64), (200, 31), (131, 257), (512, 333)])
@pytest.mark.parametrize("size", [16, 31, 40])
def test_every_click_keeps_its_value_when_the_image_shrinks(shape, size):
    """Wherever the mask is constant over one output pixel around the click."""
    rng = np.random.default_rng(0)
    resize = Resize(shape, size)
    block = int(np.ceil(4 * max(shape) / size))
    coarse = rng.random((shape[0] // block + 1, shape[1] // block + 1)) < 0.5
    mask = np.kron(coarse, np.ones((block, block), bool)).astype(bool)[: shape[0], : shape[1]]
    reach = [
        2 * int(np.ceil(0.5 * old / new)) + 1
        for old, new in zip(shape, resize.resized, strict=True)
    ]
    constant = maximum_filter(mask, reach) == minimum_filter(mask, reach)
    assert constant.mean() > 0.2 and 0 < mask.mean() < 1
    x, y = pixel_under(resize.points(every_pixel(*shape)))
    same = (resize.mask(mask)[y, x] == mask.ravel()).reshape(shape)
    assert same[constant].all()


@pytest.mark.parametrize("shape", [(37, 53), (100, 31), (20, 20)])
@pytest.mark.parametrize("size", [24, 64, 128])
def test_points_and_pictures_move_together(shape, size):
    """A picture of its own coordinates still says (x, y) at the place where (x, y) has gone."""
    rows, columns = np.indices(shape).astype(np.float32)
    resize = Resize(shape, size)
    moved = resize.image(torch.from_numpy(np.stack([columns, rows]))).numpy()
    margin = int(np.ceil(2 * max(1, max(shape) / size)))  # away from the edge of the resampling
    inner = every_pixel(shape[0] - 2 * margin, shape[1] - 2 * margin) + margin
    assert len(inner) > 20
    x, y = resize.points(inner).T.astype(np.float64)
    read = np.stack([map_coordinates(plane, [y, x], order=1) for plane in moved], axis=1)
    # Antialiasing bends a ramp by 0.05 pixel at most; leaving out the half costs 0.086 or more.
    assert abs(read - inner).max() < 0.06


@pytest.mark.parametrize("shape", SHAPES)
def test_restored_masks_lie_where_they_were(shape):
    """The picture of coordinates again, there and back."""
    rows, columns = np.indices(shape).astype(np.float32)
    coordinates = torch.from_numpy(np.stack([columns, rows]))
    resize = Resize(shape, 256)
    restored = resize.restore(resize.image(coordinates))
    assert restored.shape == (2, *shape)
    assert (restored - coordinates).abs().max() <= max(1.0, max(shape) / 256)
    mask = np.zeros(shape, bool)
    mask[: shape[0] // 2 + 1, shape[1] // 3 :] = True
    logits = resize.mask(mask).astype(np.float32) * 2 - 1
    wrong = (resize.restore(logits) > 0) != mask
    assert wrong.mean() <= 2 / max(1, min(shape))
    if max(shape) <= 64:
        assert not wrong.any()


@pytest.mark.parametrize("shape", SHAPES)
def test_restore_equals_segment_anything(shape):
    resize = Resize(shape, 64)
    low = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    sam = SimpleNamespace(image_encoder=SimpleNamespace(img_size=64))
    expected = Sam.postprocess_masks(sam, low, resize.resized, shape)
    torch.testing.assert_close(resize.restore(low), expected, rtol=0, atol=1e-6)
    assert np.array_equal(resize.restore(low.numpy()), resize.restore(low).numpy())
    assert resize.restore(low[0, 0]).shape == shape


@pytest.mark.parametrize("shape", [(37, 53), (100, 31), (20, 20), (90, 90)])
def test_image_equals_segment_anything(shape):
    """Up to one grey level, by which Pillow's and torch's rounding to 8 bits differ."""
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    sam = SimpleNamespace(
        image_encoder=SimpleNamespace(img_size=64),
        pixel_mean=torch.tensor(PIXEL_MEAN).view(3, 1, 1),
        pixel_std=torch.tensor(PIXEL_STD).view(3, 1, 1),
    )
    resized = ResizeLongestSide(64).apply_image(image).transpose(2, 0, 1)
    expected = Sam.preprocess(sam, torch.from_numpy(resized.copy()).float())
    resize = Resize(shape, 64)
    ours = normalise_pixels(resize.image(as_pixels(image))[None], resize.valid()[None])[0]
    assert (ours - expected).abs().max() < 1.01 / min(PIXEL_STD)


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_is_right_and_below(shape):
    resize = Resize(shape, 48)
    height, width = resize.resized
    valid = resize.valid()
    assert valid[:height, :width].all() and valid.sum() == height * width
    image = resize.image(torch.ones(3, *shape))
    assert torch.allclose(image, valid.float().expand(3, -1, -1))
    assert np.array_equal(resize.mask(np.ones(shape, bool)), valid.numpy())


@pytest.mark.parametrize("size", [64, 1024])
def test_boxes_move_as_in_sam(size):
    resize = Resize((37, 53), size)
    boxes = np.array([[0.0, 0.0, 52.0, 36.0], [3.0, 5.0, 3.0, 9.0]])
    expected = ResizeLongestSide(size).apply_boxes(boxes, (37, 53))
    assert resize.boxes(boxes) == pytest.approx(expected)
    assert np.array_equal(resize.boxes(boxes[0]), resize.boxes(boxes)[0])


def test_the_edges_of_the_image_stay_its_edges():
    resize = Resize((37, 53), 64)
    # Pixel edges of the whole image go to the edges of the resized image.
    height, width = resize.resized
    assert resize.boxes([0, 0, 53, 37]) == pytest.approx([0, 0, width, height])
    assert resize.points([[-0.5, -0.5], [52.5, 36.5]]) == pytest.approx(
        np.array([[-0.5, -0.5], [width - 0.5, height - 0.5]])
    )


def test_tensors_and_arrays_give_the_same_mask():
    rng = np.random.default_rng(2)
    for dtype in (np.bool_, np.uint8, np.int64, np.float32):
        labels = rng.integers(0, 3, (2, 37, 53)).astype(dtype)
        resize = Resize((37, 53), 64)
        tensor = resize.mask(torch.from_numpy(labels))
        assert np.array_equal(resize.mask(labels), tensor.numpy())
        assert tensor.numpy().dtype == dtype and tensor.shape == (2, 64, 64)


def test_wrong_shapes_are_refused():
    resize = Resize((37, 53), 64)
    for call in (resize.mask, resize.image):
        with pytest.raises(ValueError, match="does not end in"):
            call(torch.zeros(3, 53, 37))
    with pytest.raises(ValueError, match="expected"):
        resize.restore(torch.zeros(1, 64, 48))
    with pytest.raises(ValueError, match="positive"):
        Resize((0, 5), 64)
