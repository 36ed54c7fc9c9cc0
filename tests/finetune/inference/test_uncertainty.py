"""Maps of uncertainty: the entropy of the mean over boxes drawn around the given one."""

import json
import math

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data_prep.common.cli import run_program
from data_prep.common.errors import UserError
from data_prep.readers.nifti import volume_from_nifti
from finetune.__main__ import COMMANDS
from finetune.inference.loading import TrainedOn
from finetune.inference.objects import Prompt
from finetune.inference.prompted import PromptedImage
from finetune.inference.segmenting import segment, segment_several
from finetune.inference.uncertainty import Spread, entropy
from finetune.prompts.boxes import jitter_box

BOX = np.array([20.0, 8, 44, 50])


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 50), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return pixels


@pytest.fixture
def predict(discs, monkeypatch):
    """Predict with the stand-in segmenter, whatever run is named."""
    module = "finetune.inference.loading"
    monkeypatch.setattr(f"{module}.load_model", lambda source, device, texts: discs)
    monkeypatch.setattr(f"{module}.trained_on", lambda run: TrainedOn())
    monkeypatch.setattr("finetune.inference.table.digest_of", lambda config: None)

    def command(*options: str) -> None:
        run_program("finetune", COMMANDS, ["predict", "--run=run", "--device=cpu", *options])

    return command


def test_entropy_is_the_formula() -> None:
    values = [0.0, 1e-9, 0.1, 0.25, 0.5, 0.9, 1.0]
    expected = [-sum(share * math.log2(share) for share in (p, 1 - p) if share > 0) for p in values]
    assert entropy(values).tolist() == pytest.approx(expected, abs=1e-6)
    assert entropy(0.5) == 1 and entropy([0.0, 1.0]).tolist() == [0, 0]


@pytest.mark.parametrize("spread", [Spread(7, 0.0), Spread(1, 0.0)])
def test_without_jitter_it_is_the_plain_box(discs, picture, spread) -> None:
    prompted, prompt = PromptedImage(discs, picture), Prompt(box=BOX)
    plain = segment(prompted, prompt)
    found = segment_several(prompted, prompt, spread, np.random.default_rng(0))
    assert np.array_equal(found.mask, plain.mask) and torch.equal(found.logits, plain.logits)
    logits = prompted.resize.restore(plain.logits[0, 0])
    assert np.allclose(found.probability, logits.sigmoid().numpy(), atol=1e-6)


def test_the_smallest_logits_keep_their_side(discs, picture) -> None:
    prompted = PromptedImage(discs, picture)
    logits = torch.full((3, 1, 64, 64), 1e-12)
    logits[..., :32] *= -1
    mask, probability = prompted.averaged(logits)
    assert np.array_equal(mask, prompted.masks_of(logits)[0]) and set(mask[0]) == {False, True}
    assert (probability == 0.5).all()


def test_the_mean_is_that_of_each_box_by_itself(discs, picture) -> None:
    prompted, prompt = PromptedImage(discs, picture), Prompt(box=BOX)
    found = segment_several(prompted, prompt, Spread(5, 0.2), np.random.default_rng(3))
    rng, total = np.random.default_rng(3), np.zeros((70, 50))
    for _ in range(5):
        box = jitter_box(BOX, rng, (70, 50), 0.2)
        logits = prompted.decode(boxes=box[None]).low_res[0, 0]
        total += nn.functional.sigmoid(prompted.resize.restore(logits)).numpy()
    assert np.allclose(found.probability, total / 5, atol=1e-6)
    sure = np.abs(total / 5 - 0.5) > 1e-6
    assert np.array_equal(found.mask[sure], (total / 5 > 0.5)[sure])
    assert (np.unique(found.probability) < 0.5).sum() > 0


def test_clicks_alone_are_answered_once(discs, picture) -> None:
    prompted = PromptedImage(discs, picture)
    prompt = Prompt(np.array([[30.0, 20]]), np.array([1]))
    before = discs.decoded
    segment_several(prompted, prompt, Spread(9), np.random.default_rng(0))
    assert discs.decoded == before + 1


def test_a_picture_gets_a_map_beside_its_mask(predict, discs, picture, tmp_path, capsys) -> None:
    options = (f"--input={tmp_path / 'photo.png'}", "--uncertainty=6", "--jitter=0.2")
    box = ",".join(f"{each:g}" for each in BOX)
    predict(*options, f"--output={tmp_path / 'mask.png'}", f"--box={box};2,40,30,66")
    assert "mask_overlay.png and " in capsys.readouterr().out
    shown = np.asarray(Image.open(tmp_path / "mask_uncertainty.png"))
    expected = np.zeros(picture.shape)
    for each in (BOX, np.array([2.0, 40, 30, 66])):
        prompted, rng = PromptedImage(discs, picture), np.random.default_rng(0)
        answer = segment_several(prompted, Prompt(box=each), Spread(6, 0.2), rng)
        expected = np.maximum(expected, entropy(answer.probability))
    assert shown.dtype == np.uint8 and np.abs(shown / 255 - expected).max() <= 0.5 / 255 + 1e-6
    assert len(np.unique(shown)) > 3


def test_a_volume_gets_one_in_its_geometry(predict, discs, tmp_path) -> None:
    voxels = np.random.default_rng(0).integers(0, 99, (40, 60, 5)).astype(np.int16)
    affine = np.diag([-2.0, 2, 3, 1])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "scan.nii.gz")
    options = (f"--input={tmp_path / 'scan.nii.gz'}", f"--output={tmp_path / 'mask.nii.gz'}")
    predict(*options, "--box=10,12,30,44,2", "--uncertainty=4")
    image = nibabel.load(tmp_path / "mask_uncertainty.nii.gz")
    assert image.shape == voxels.shape and np.allclose(image.affine, affine)
    assert image.get_data_dtype() == np.uint16
    bits = volume_from_nifti(image, "axial").array  # (D, H, W)
    mask = volume_from_nifti(nibabel.load(tmp_path / "mask.nii.gz"), "axial").array
    assert 0 < bits.max() <= 1
    held = mask.any((1, 2))
    assert held.sum() > 1 and (bits[held].max((1, 2)) > 0).all() and not bits[~held].any()
    prompted = PromptedImage(discs, np.zeros((60, 40), np.uint8))  # discs do not look at pixels
    box = np.array([10.0, 12, 30, 44])
    answer = segment_several(prompted, Prompt(box=box), Spread(4), np.random.default_rng(2))
    assert np.abs(bits[2] - entropy(answer.probability)).max() <= 0.5 * 2**-12 + 1e-6


def test_a_table_makes_the_maps_that_are_missing(predict, picture, tmp_path, capsys) -> None:
    (tmp_path / "rows.csv").write_text('file,box\nphoto.png,"5,5,30,30"\n')
    options = (f"--input={tmp_path}", f"--output={tmp_path / 'out'}", "--uncertainty=2")
    options += (f"--prompts={tmp_path / 'rows.csv'}",)
    predict(*options)
    assert json.loads((tmp_path / "out" / "rows.jsonl").read_text())["file"] == "photo.png"
    path = tmp_path / "out" / "photo_uncertainty.png"
    first = path.read_bytes()
    path.unlink()
    predict(*options)
    assert path.read_bytes() == first  # the same boxes are drawn
    predict(*options)
    assert (
        capsys.readouterr().out.splitlines()[-1].endswith("0 masks written, 1 were there already")
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--uncertainty=-1",), "uncertainty is -1; it must not be negative"),
        (("--uncertainty=3", "--jitter=-1"), "jitter is -1.0; it must not be negative"),
        (("--jitter=0.3",), "jitter: is for --uncertainty; give both, or leave it out"),
        (("--uncertainty=3", "--add"), "uncertainty: a mask that is added to keeps none"),
    ],
)
def test_options_that_cannot_be_are_refused(predict, picture, tmp_path, capsys, options, message):
    given = (f"--input={tmp_path / 'photo.png'}", f"--output={tmp_path / 'mask.png'}")
    with pytest.raises(SystemExit):
        predict(*given, "--clicks=3,3,1", *options)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not (tmp_path / "mask.png").exists()


def test_a_map_that_is_there_is_not_replaced(predict, picture, tmp_path, capsys) -> None:
    (tmp_path / "mask_uncertainty.png").write_text("mine")
    given = (f"--input={tmp_path / 'photo.png'}", f"--output={tmp_path / 'mask.png'}")
    with pytest.raises(SystemExit):
        predict(*given, "--clicks=3,3,1", "--uncertainty=2")
    assert "mask_uncertainty.png is there already" in capsys.readouterr().err
    assert (tmp_path / "mask_uncertainty.png").read_text() == "mine"


def test_a_spread_of_no_boxes_is_refused() -> None:
    with pytest.raises(UserError, match="must be at least 1"):
        Spread(0)
