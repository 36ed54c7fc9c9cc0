"""`finetune.Predictor` on arrays and files: as segment_anything's, and as the command."""

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.data import get_testdata_file

import finetune
from data_prep.common.cli import run_program
from data_prep.common.errors import UserError
from finetune.__main__ import COMMANDS
from finetune.inference.loading import TrainedOn
from finetune.inference.prompted import PromptedImage

CLICKS, BOX = np.array([[30, 20, 1], [60, 40, 0]]), np.array([10, 5, 60, 45])


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


@pytest.fixture
def predictor(run_folder, image):
    """Of a tiny run at 64 pixels, its image set."""
    predictor = finetune.Predictor(run_folder, device="cpu")
    predictor.set_image(image)
    return predictor


@pytest.fixture
def seeing(monkeypatch):
    """A predictor whose model is a stand-in."""

    def make(segmenter):
        loading = "finetune.inference.predictor"
        monkeypatch.setattr(f"{loading}.load_model", lambda source, device: segmenter)
        monkeypatch.setattr(f"{loading}.trained_on", lambda run: TrainedOn())
        return finetune.Predictor("run", "cpu")

    return make


def test_several_objects_are_those_of_a_call_each(predictor):
    boxes = np.array([BOX, [30, 10, 70, 50]])
    clicks = np.stack([CLICKS, [[45, 12, 1], [8, 30, 1]]])
    rough = np.zeros((2, 50, 70), bool)
    rough[0, 10:30, 10:30], rough[1, 5:40, 40:60] = True, True
    together = predictor.predict(clicks, boxes, rough)
    assert together[0].shape == (2, 50, 70) and together[2].shape == (2, 16, 16)
    for number in (0, 1):
        alone = predictor.predict(clicks[number], boxes[number], rough[number].astype(np.uint8))
        for one, both in zip(alone, together, strict=True):
            assert np.allclose(one[0], both[number], atol=1e-4)
    assert not np.array_equal(predictor.predict(clicks, boxes)[2], together[2])


def test_logits_are_given_back(predictor):
    _, _, logits = predictor.predict(CLICKS[:1])
    given = predictor.predict(CLICKS, mask=logits)
    prompted = PromptedImage(predictor.segmenter, predictor._pixels)
    masks, low_res = prompted.predict(
        CLICKS[None, :, :2], CLICKS[None, :, 2], previous=torch.from_numpy(logits)[:, None]
    )
    assert np.array_equal(given[0], masks) and np.allclose(given[2], low_res[:, 0])
    assert np.array_equal(given[2], predictor.predict(CLICKS, mask=logits[0])[2])


def test_an_image_is_encoded_once(seeing, glow, tmp_path):
    predictor = seeing(glow)
    pixels = np.zeros((64, 64), np.uint8)
    pixels[10:30, 10:30] = 200
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    for image in (pixels, tmp_path / "photo.png", str(tmp_path / "photo.png")):
        predictor.set_image(image)
        for _ in range(3):
            masks, scores, _ = predictor.predict([[20, 20, 1]])
            assert np.array_equal(masks[0], pixels > 0) and np.isfinite(scores).all()
    assert glow.encoded == 3


def test_a_head_is_asked_by_name(seeing, headed):
    predictor = seeing(headed)
    assert predictor.targets == ("bright", "dark")
    predictor.set_image(np.full((64, 64), 200, np.uint8))
    masks, _, _ = predictor.predict(target=["dark", "bright"])
    assert masks.any((1, 2)).tolist() == [False, True]
    assert predictor.predict(target="bright")[0].all()
    found = predictor.predict_volume(np.full((3, 64, 64), 200, np.uint8), target="bright")
    assert found.shape == (1, 3, 64, 64) and found.all()
    with pytest.raises(UserError, match="did you mean bright"):
        predictor.predict(target="brigth")
    with pytest.raises(UserError, match="takes a target"):
        predictor.predict([[1, 1, 1]])


def test_uncertainty_is_that_of_the_command(predictor, run_folder, image, tmp_path):
    boxes = np.array([BOX, [30, 10, 70, 50]])
    clicks = np.stack([CLICKS, [[45, 12, 1], [8, 30, 1]]])
    masks, probability, unsure = predictor.predict_uncertain(boxes, clicks, draws=4, jitter=0.2)
    assert masks.shape == probability.shape == unsure.shape == (2, 50, 70)
    assert probability.dtype == unsure.dtype == np.float32 and masks.dtype == bool
    assert np.array_equal(masks, probability > 0.5)
    for number in (0, 1):
        alone = predictor.predict_uncertain(boxes[number], clicks[number], draws=4, jitter=0.2)
        for one, both in zip(alone, (masks, probability, unsure), strict=True):
            assert np.allclose(one, both[[number]], atol=1e-5)
    Image.fromarray(image).save(tmp_path / "photo.png")
    words = ["predict", f"--run={run_folder}", "--device=cpu", f"--input={tmp_path / 'photo.png'}"]
    words += [f"--output={tmp_path / 'mask.png'}", "--uncertainty=4", "--jitter=0.2"]
    words += ["--box=10,5,60,45", "--clicks=30,20,1 60,40,0"]
    run_program("finetune", COMMANDS, words)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mask.png")) > 0, masks[0])
    shown = np.asarray(Image.open(tmp_path / "mask_uncertainty.png")) / 255
    assert np.abs(shown - unsure[0]).max() <= 0.5 / 255 + 1e-5 and unsure[0].std() > 0


def test_a_volume_is_prompted_in_some_slices(seeing, glow, wander):
    predictor = seeing(glow)
    first, second = wander(14, (1, 6), 4), wander(14, (7, 12), 40)
    volume = (first | second).astype(np.uint8) * 200
    boxes = np.array([[[3, 13, 21, 31, 3]], [[39, 19, 57, 37, 9]]])
    found = predictor.predict_volume(volume, box=boxes)
    assert np.array_equal(found, [first, second])
    clicks = np.array([[12, 19, 2, 1], [12, 22, 5, 1], [48, 28, 9, 1]])
    found = predictor.predict_volume(volume, clicks, box=[39, 17, 57, 35, 8])
    assert np.array_equal(found, [first | second])
    rough = np.zeros(volume.shape, bool)
    rough[4] = first[4]
    assert np.array_equal(predictor.predict_volume(volume, mask=rough), [first])
    colour = np.repeat(volume[..., None], 3, axis=3)
    assert np.array_equal(predictor.predict_volume(colour, mask=rough), [first])


def test_slices_of_a_memory_map_are_read_one_at_a_time(seeing, glow, wander, tmp_path):
    mask = wander(9, (2, 6))
    np.save(tmp_path / "volume.npy", mask.astype(np.uint8) * 200)
    volume = np.load(tmp_path / "volume.npy", mmap_mode="r")
    found = seeing(glow).predict_volume(volume, [25, 22, 4, 1])
    assert np.array_equal(found[0], mask) and glow.encoded == 7


def test_adapters_can_be_left_out(predictor, image, seeing, glow):
    before = predictor.predict(CLICKS)[2]
    other = image[::-1].copy()
    with predictor.without_adapters():
        plain = predictor.predict(CLICKS)[2]
        with predictor.segmenter.without_adapters():
            expected = PromptedImage(predictor.segmenter, image)
            _, logits = expected.predict(CLICKS[None, :, :2], CLICKS[None, :, 2])
        assert np.allclose(plain, logits[:, 0], atol=1e-5) and not np.allclose(plain, before)
        predictor.set_image(other)
    after = predictor.predict(CLICKS)[2]
    fresh = PromptedImage(predictor.segmenter, other)
    assert np.allclose(after, fresh.predict(CLICKS[None, :, :2], CLICKS[None, :, 2])[1][:, 0])
    with pytest.raises(UserError, match="no adapters"), seeing(glow).without_adapters():
        pass


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no prompt: give clicks, a box, a mask, a text or a target"),
        ({"clicks": [[1, 2]]}, r"clicks: has shape \(1, 2\); expected 3 numbers each"),
        ({"clicks": [[1, 2, 2]]}, "its label, 1 or 0"),
        ({"clicks": [[80, 2, 1]]}, r"clicks: \(80, 2\) lies outside"),
        ({"clicks": [[np.nan, 2, 1]]}, "not finite"),
        ({"clicks": "ten"}, "not an array of numbers"),
        ({"box": [9, 2, 3, 4]}, "x0 < x1"),
        ({"box": [1, 2, 3]}, "expected 4 numbers each"),
        ({"box": [1, 2, 3, 90]}, r"box: \(3, 90\) lies outside"),
        ({"box": [[1, 2, 3, 4]] * 2, "clicks": [[1, 1, 1]]}, "different numbers of objects"),
        (
            {"mask": np.ones((40, 70), bool)},
            r"mask: has shape \(40, 70\) and type bool; expected \(50, 70\)",
        ),
        ({"mask": np.ones((50, 70))}, r"mask: logits of shape \(50, 70\); expected \(16, 16\)"),
        ({"target": "liver"}, "this model's decoder takes clicks, a box or a mask, and no other"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(seeing, glow, image, given, message):
    predictor = seeing(glow)
    predictor.set_image(image)
    with pytest.raises(UserError, match=message) as error:
        predictor.predict(**given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clicks": [1, 2, 9, 1]}, r"slice 9 is not one of the volume's, 0 to 3"),
        ({"clicks": [1, 2, 0.5, 1]}, "slice 0.5 is not one"),
        ({"box": [[1, 2, 8, 9, 1], [1, 2, 8, 9, 1]]}, "an object has 2 in slice 1"),
        ({"mask": np.zeros((4, 50, 70), bool)}, "it is empty"),
        ({"mask": np.zeros((4, 50, 7), bool)}, "mask: has shape"),
        ({"clicks": [99, 2, 1, 1]}, "lies outside"),
        ({}, "no prompt"),
    ],
)
def test_prompts_that_do_not_fit_a_volume_are_refused(seeing, glow, given, message):
    predictor = seeing(glow)
    with pytest.raises(UserError, match=message):
        predictor.predict_volume(np.zeros((4, 50, 70), np.uint8), **given)
    with pytest.raises(UserError, match=r"a volume has shape \(50, 70\)"):
        predictor.predict_volume(np.zeros((50, 70), np.uint8), **given)


def test_images_that_cannot_be_used_are_refused(seeing, glow, tmp_path):
    predictor = seeing(glow)
    data = np.zeros((8, 9, 5), np.int16)
    data[2:5] = 7
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "scan.nii")
    with pytest.raises(UserError, match=r"scan\.nii: holds slices; give one, or all to predict_v"):
        predictor.set_image(tmp_path / "scan.nii")
    with pytest.raises(UserError, match=r"color\.dcm: holds slices; give one, or all to predict_v"):
        predictor.set_image(get_testdata_file("examples_ybr_color.dcm"))
    with pytest.raises(UserError, match="values of type int16"):
        predictor.set_image(data[0])
    with pytest.raises(UserError, match=r"none\.png does not exist"):
        predictor.set_image("none.png")
    with pytest.raises(UserError, match="call set_image first"):
        predictor.predict(CLICKS)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.yaml"):
        finetune.Predictor(tmp_path, "cpu")


def test_it_is_imported_when_it_is_asked_for():
    code = "import sys, finetune, finetune.config; assert 'torch' not in sys.modules\n"
    code += "assert finetune.Predictor.__module__ == 'finetune.inference.predictor'\n"
    root = Path(finetune.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
    with pytest.raises(AttributeError, match="has no attribute 'Predicter'"):
        _ = finetune.Predicter
    assert finetune.__all__ == ["Predictor"]
