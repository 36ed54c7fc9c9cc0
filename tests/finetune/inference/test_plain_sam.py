"""SAM without a run, in `evaluate` and `predict`, equals segment_anything's own predictor."""

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from segment_anything import SamPredictor
from segment_anything.build_sam import _build_sam
from segment_anything.modeling import Sam

from data_prep.common.cli import run_program
from data_prep.common.errors import UserError
from data_prep.common.files import write_json
from finetune import Predictor
from finetune.__main__ import COMMANDS
from finetune.config import ModelSource
from finetune.inference.loading import load_model
from finetune.inference.prompted import PromptedImage
from pretrain.encoder.sam import build_encoder
from pretrain.sizes import SIZES, EncoderSize

CPU = torch.device("cpu")
CLICKS, LABELS = np.array([[300, 200], [620, 90]]), np.array([1, 0])
BOX = np.array([120.0, 40.0, 900.0, 280.0])


@pytest.fixture(autouse=True)
def tiny_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", EncoderSize(32, 2, 2, (1,)))


@pytest.fixture(scope="module")
def stock() -> Sam:
    """segment_anything's SAM with a tiny encoder, every weight moved from its initial value."""
    torch.manual_seed(0)
    sam = _build_sam(32, 2, 2, [1])
    with torch.no_grad():
        for parameter in sam.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return sam.eval()


@pytest.fixture(scope="module")
def sam_file(stock: Sam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint, in the form of the official ones."""
    path = tmp_path_factory.mktemp("sam") / "sam.pth"
    torch.save(stock.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """An image that SAM takes as it is: its longest side is 1024."""
    return np.random.default_rng(0).integers(0, 256, (320, 1024, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor(stock: Sam, picture: np.ndarray) -> SamPredictor:
    predictor = SamPredictor(stock)
    predictor.set_image(picture)
    return predictor


def stock_answer(predictor: SamPredictor, points, labels, box, before=None):
    """Mask, logits and IoU; a lone click or box is answered by the best of three masks."""
    single = before is None and (0 if points is None else len(points)) == (box is None)
    masks, ious, logits = predictor.predict(points, labels, box, before, multimask_output=single)
    best = int(ious.argmax())
    return masks[best], logits[best : best + 1], ious[best]


def command(*options: str) -> None:
    run_program("finetune", COMMANDS, [*options, "--device=cpu", "--threads=1"])


def test_all_prompts_give_the_masks_of_the_stock_predictor(sam_file, picture, predictor) -> None:
    model = load_model(ModelSource(sam=str(sam_file)), CPU)
    assert model.image_size == 1024 and not model.training
    assert set(model.state_dict()) == set(torch.load(sam_file, weights_only=True))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    ours = Predictor.from_sam(sam_file, "cpu")
    ours.set_image(picture)
    prompted = ours._prompted
    torch.testing.assert_close(prompted.embedding, predictor.features, atol=1e-4, rtol=1e-4)
    previous, before = None, None
    for clicks, box in ((1, None), (2, None), (0, BOX), (0, BOX), (2, BOX)):
        points = CLICKS[None, :clicks] if clicks else None
        labels = LABELS[None, :clicks] if clicks else None
        boxes = None if box is None else box[None]
        masks, low_res = prompted.predict(points, labels, boxes, previous)
        given = [None if each is None else each[0] for each in (points, labels)]
        expected, logits, expected_iou = stock_answer(predictor, *given, box, before)
        assert 0 < expected.mean() < 1
        torch.testing.assert_close(low_res[0], torch.from_numpy(logits), atol=1e-3, rtol=1e-3)
        assert (masks[0] != expected).mean() < 1e-4  # where a logit is all but zero
        clicks_given = None if points is None else np.c_[points[0], labels[0]]
        found, scores, raw = ours.predict(clicks_given, box, before)
        assert found.shape == (1, 320, 1024) and (found[0] != expected).mean() < 1e-4
        assert np.allclose(raw[0], logits[0], atol=1e-3)
        assert scores[0] == pytest.approx(expected_iou, abs=1e-4)
        previous, before = (low_res, logits) if box is None else (None, None)


def test_another_image_is_resized_and_prompted_on_the_same_spots(sam_file, stock) -> None:
    """SAM's own scaling of clicks leaves half a pixel out, which is put back here."""
    small = np.random.default_rng(1).integers(0, 256, (90, 64, 3), dtype=np.uint8)
    prompted = PromptedImage(load_model(ModelSource(sam=str(sam_file)), CPU), small)
    predictor = SamPredictor(stock)
    pixels = prompted.resize.image(torch.from_numpy(small).permute(2, 0, 1))
    height, width = prompted.resize.resized
    predictor.set_torch_image(pixels[None, :, :height, :width], small.shape[:2])
    scale = np.array([width / 64, height / 90])
    box, click = np.array([10.0, 20.0, 50.0, 70.0]), np.array([[30.0, 44.0]])
    expected, logits, _ = stock_answer(predictor, click + 0.5 - 0.5 / scale, np.array([1]), box)
    masks, low_res = prompted.predict(click[None], [[1]], box[None])
    torch.testing.assert_close(low_res[0], torch.from_numpy(logits), atol=1e-3, rtol=1e-3)
    assert (masks[0] != expected).mean() < 1e-3


def test_predict_takes_sam_without_a_run(sam_file, picture, predictor, tmp_path, capsys) -> None:
    Image.fromarray(picture).save(tmp_path / "photo.png")
    output = tmp_path / "mask.png"
    files = (f"--input={tmp_path / 'photo.png'}", f"--output={output}")
    command("predict", f"--sam={sam_file}", *files, "--box=120,40,900,280")
    expected, _, _ = stock_answer(predictor, None, None, BOX)
    found = np.array(Image.open(output))
    assert (found != expected * 255).mean() < 1e-4
    assert "window:" not in capsys.readouterr().out


def test_a_medical_image_is_windowed_and_that_is_said(sam_file, tmp_path, capsys) -> None:
    data = np.random.default_rng(0).normal(0, 300, (24, 20, 3)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "scan.nii")
    given = ("predict", f"--sam={sam_file}", f"--input={tmp_path / 'scan.nii'}", "--slice=1")
    given = (*given, "--clicks=9,9,1", "--image_size=64")
    command(*given, f"--output={tmp_path / 'a.nii'}")
    line = "window: auto, the file's own or else percentiles; --window gives another"
    assert line in capsys.readouterr().out
    command(*given, f"--output={tmp_path / 'b.nii'}", "--window=[-160, 240]")
    assert "window:" not in capsys.readouterr().out


def test_evaluate_takes_sam_without_a_run_at_another_size(
    sam_file, make_shards, organs, tmp_path
) -> None:
    shards = make_shards([organs(0), organs(1)], {"liver": [1], "tumour": [2]})
    output = tmp_path / "results"
    options = (f"--sam={sam_file}", f"--data.shards={shards}", "--data.split=train")
    command("evaluate", *options, "--image_size=64", "--protocols=[Box]", f"--output={output}")
    rows = list(csv.DictReader((output / "results.csv").read_text().splitlines()))
    assert [row["protocol"] for row in rows] == ["box", "filled box"] * 4
    assert f"sam: {sam_file}" in (output / "config.yaml").read_text()


def test_an_encoder_of_stage_one_replaces_sams_at_its_own_size(sam_file, tmp_path) -> None:
    torch.manual_seed(3)
    encoder = build_encoder("tiny")
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    write_json(tmp_path / "encoder.json", {"name": "tiny", "image_size": 96})
    source = ModelSource(sam=str(sam_file), encoder=str(tmp_path))
    model = load_model(source, CPU)
    assert model.image_size == 96
    loaded = torch.load(sam_file, weights_only=True)
    for key, value in model.state_dict().items():
        name = key.removeprefix("image_encoder.")
        expected = loaded[key] if name == key else encoder.state_dict()[name]
        assert torch.equal(value, expected), key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "run: give --run FOLDER for an adapted model, or --sam FILE for SAM"),
        ({"encoder": "x"}, "run: give --run FOLDER for an adapted model, or --sam FILE for SAM"),
        ({"run": Path("x"), "image_size": 64}, "image_size: a run has its own"),
        ({"sam": "x", "image_size": 100}, "image_size is 100; it must be a multiple of 16"),
    ],
)
def test_what_names_no_model_or_two_is_refused(options, message) -> None:
    with pytest.raises(UserError, match=message):
        ModelSource(**options)


def test_a_file_that_is_not_sam_is_refused(tmp_path, sam_file) -> None:
    torch.manual_seed(3)
    save_file(build_encoder("tiny").state_dict(), tmp_path / "encoder.safetensors")
    with pytest.raises(UserError, match=r"encoder\.safetensors does not fit: .* missing"):
        load_model(ModelSource(sam=str(tmp_path / "encoder.safetensors")), CPU)
    with pytest.raises(UserError, match=r"org/sam: no such file or folder"):
        load_model(ModelSource(sam="org/sam"), CPU)
